"""A whole comparison of tiny models: what it measures, keeps, says and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.comparing import looking, measuring
from prunus.comparing.run import KEPT, compare, write
from prunus.comparing.values import Compared
from prunus.errors import ComparisonError, CorpusError, ExportError, LoadError, RecipeError
from prunus.evaluation.fidelity import Fidelity
from prunus.evaluation.perplexity import Perplexity
from prunus.export.huggingface import save
from prunus.known import Known
from prunus.loading import load
from prunus.pipeline import prune

from ..asked import rows_of, written
from ..contenders import asked, saved, three, without
from ..tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    return three(tmp_path)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PRUNUS_DATA with one task."""
    written(tmp_path / "data" / "piqa", train=rows_of("piqa", 4, seed=1), validation=rows_of("piqa", 16))
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def labels(found: Compared) -> list[str]:
    return [row.label for row in found.rows]


def row(found: Compared, label: str) -> Any:
    return next(row for row in found.rows if row.label == label)


def nothing_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a model that is asked anything is an error."""
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    for name in ("Fidelity.measure", "Tasks.measure", "generate", "in_pytorch", "memory_in_pytorch"):
        monkeypatch.setattr(f"prunus.comparing.measuring.{name}", never)


def test_every_model_is_measured_as_the_metrics_measure_it(sources: list[str], tmp_path: Path) -> None:
    found = compare(sources, asked(), tmp_path / "out")
    dense, half, _ = found.models
    alone = Perplexity("builtin", length=32, tokens=512)
    from prunus.evaluation import Context

    for model in (dense, half):
        loaded = load(model.source)
        expected = alone.measure(loaded.model, Context(loaded.tokenizer))
        assert model.measured[0].value == pytest.approx(expected.value, rel=1e-5)
        assert model.measured[0].protocol == expected.protocol
    assert [model.name for model in found.models] == ["dense", "half", "wreck"]
    assert [model.sparsity for model in found.models] == pytest.approx([0.0, 0.5, 0.98], abs=1e-3)
    assert labels(found)[:4] == [f"builtin test {name}" for name in ("perplexity", "calibration error", "divergence from dense",
                                                                       "agreement with dense")]


def test_a_second_call_measures_nothing_and_says_the_same(sources: list[str], data: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked(tasks=("piqa",), limit=8, rounds=1, read=8, write=2)
    first = compare(sources, settings, tmp_path / "out")
    nothing_measures(monkeypatch)
    second = compare(sources, settings, tmp_path / "out")
    assert second.rows == first.rows
    assert second.models == first.models
    assert second.flags == first.flags


def test_a_second_call_loads_no_model(sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(sources[:2], asked(), tmp_path / "out")
    opened: list[str] = []
    load_one = looking.opened

    def counted(source: str, *others: Any) -> Any:
        opened.append(Path(source).name)
        return load_one(source, *others)

    monkeypatch.setattr(looking, "opened", counted)
    monkeypatch.setattr(measuring, "opened", counted)
    assert compare(sources[:2], asked(), tmp_path / "out").rows == first.rows
    assert opened == []
    compare(sources, asked(), tmp_path / "out")
    assert opened == ["wreck", "dense", "wreck"]  # looked at, beside what the dense one is made of, and measured
    opened.clear()
    saved(Path(sources[1]), without(tiny_model(), 0.6))
    again = compare(sources[:2], asked(), tmp_path / "out")
    assert opened == ["half", "dense", "half"]
    assert again.models[1].sparsity == pytest.approx(0.6, abs=1e-3)


def test_what_the_dense_model_predicted_is_the_same_when_it_comes_from_disk(sources: list[str], tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(sources, asked(), tmp_path / "whole")
    for name in ("kept", "lost", "damaged", "large"):
        if name == "large":
            monkeypatch.setattr("prunus.comparing.kept._LARGEST", 1000)
        compare(sources[:2], asked(), tmp_path / name)
        files = list((tmp_path / name / KEPT).glob("predictions-*.safetensors"))
        assert len(files) == (name != "large")
        for file in files:
            if name == "lost":
                file.unlink()
            if name == "damaged":
                file.write_bytes(file.read_bytes()[:-8] + bytes(8))
        found = compare(sources, asked(), tmp_path / name)
        assert found.rows == whole.rows
        assert any("dense again" in part for part in found.spent) == (name != "kept")


def test_every_part_of_the_cost_is_told(sources: list[str], data: Path, tmp_path: Path) -> None:
    """Tokens are counted where they go through a model: 16 windows of 32 through each, whatever for."""
    found = compare(sources[:2], asked(tasks=("piqa",), limit=8, rounds=1, read=8, write=4), tmp_path / "out")
    for model in found.models:
        assert list(model.spent) == ["looking", "text builtin", "task piqa", "answers", "memory"]
        assert min(spent.seconds for spent in model.spent.values()) > 0
        assert model.spent["text builtin"].tokens == 512
        assert model.spent["memory"].tokens == 2 * 12
        assert model.spent["answers"].tokens == len("A plum is") + 3
        assert model.spent["task piqa"].tokens > 8 * 2 * len("Question: \nAnswer:")
        assert model.spent["text builtin"].host_bytes > 2**20
    assert found.spent["speed, all models in turn"].tokens == 2 * 2 * 12
    assert set(found.spent) == {"speed, all models in turn", "intervals and tests", "texts seen before"}
    files = write(found, tmp_path / "out")
    text = files[1].read_text()
    assert "| text builtin | 512 | 512 |" in text
    for part in ("looking", "task piqa", "memory", "speed, all models in turn", "texts seen before", "peak memory, MiB", "energy, J"):
        assert f"| {part} |" in text
    data_found = json.loads(files[2].read_text())
    assert data_found["models"][0]["spent"]["text builtin"]["tokens"] == 512


def test_another_model_or_task_measures_only_what_is_missing(sources: list[str], data: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    compare(sources[:2], asked(), tmp_path / "out")
    seen: list[int] = []
    measure = Fidelity.measure

    def counted(self: Fidelity, model: Any, context: Any) -> Any:
        seen.append(sum(int((weight == 0).sum()) for weight in model.parameters()))
        return measure(self, model, context)

    monkeypatch.setattr(Fidelity, "measure", counted)
    whole = compare(sources, asked(), tmp_path / "out")
    assert len(seen) == 1  # the new one: what the dense model predicted is on disk
    assert seen[0] > 1000
    assert whole.rows == compare(sources, asked(), tmp_path / "again").rows
    seen.clear()
    compare(sources, asked(tasks=("piqa",), limit=8), tmp_path / "out")
    assert seen == []


def test_an_interrupted_comparison_goes_on(sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Fidelity.measure, []

    def interrupted(self: Fidelity, model: Any, context: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, model, context)

    monkeypatch.setattr(Fidelity, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(sources, asked(), tmp_path / "out")
    assert len(list((tmp_path / "out" / KEPT).glob("text-*.json"))) == 2
    found = compare(sources, asked(), tmp_path / "out")
    assert len(calls) == 4  # the third model again
    assert found.rows == compare(sources, asked(), tmp_path / "again").rows


def test_another_protocol_or_other_weights_are_never_taken_for_the_same(sources: list[str], tmp_path: Path) -> None:
    first = compare(sources, asked(), tmp_path / "out")
    longer = compare(sources, asked(length=64), tmp_path / "out")
    assert "windows of 64" in longer.rows[0].protocol
    assert longer.rows[0].entries[0].value != first.rows[0].entries[0].value
    saved(Path(sources[1]), without(tiny_model(), 0.6))
    other = compare(sources, asked(), tmp_path / "out")
    assert other.models[1].weights != first.models[1].weights
    assert other.rows[0].entries[1].value != first.rows[0].entries[1].value
    assert other.rows[0].entries[0] == first.rows[0].entries[0]


def test_a_damaged_or_foreign_file_of_measurements_is_measured_again(sources: list[str], tmp_path: Path) -> None:
    first = compare(sources[:2], asked(), tmp_path / "out")
    files = sorted((tmp_path / "out" / KEPT).glob("text-*.json"))
    files[0].write_text(files[0].read_text()[:100])
    other = json.loads(files[1].read_text())
    other["identity"]["metric"]["length"] = 99
    other["result"]["measured"][0]["value"] = 1.0
    files[1].write_text(json.dumps(other))
    assert compare(sources[:2], asked(), tmp_path / "out").rows == first.rows


def test_what_is_said_is_what_the_test_allows(sources: list[str], tmp_path: Path) -> None:
    found = compare([*sources, saved(tmp_path / "same", without(tiny_model(), 0.501))], asked(tokens=2048), tmp_path / "out")
    agreement = row(found, "builtin test agreement with dense")
    assert [entry.best for entry in agreement.entries] == [False, True, False, True]
    assert "half is better than wreck" in agreement.verdict or "same is better than wreck" in agreement.verdict
    assert agreement.comparisons == 3
    assert all(entry.beside is None for entry in agreement.entries)  # the dense model agrees with itself
    perplexity = row(found, "builtin test perplexity")
    assert perplexity.comparisons == 6
    for entry in perplexity.entries[1:]:
        assert (entry.beside.said == "open") == (entry.beside.p >= 0.05)


def test_a_model_of_another_tokenizer_is_refused_before_anything_is_measured(sources: list[str], tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["plum"])
    tokenizer.save_pretrained(sources[1])
    nothing_measures(monkeypatch)
    with pytest.raises(ComparisonError, match=r"^dense and half: their tokenizers differ \(tokenizer of 260 words .*; tokenizer of 261 "):
        compare(sources, asked(), tmp_path / "out")


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"corpora": ("builtim",)}, CorpusError, "corpus 'builtim' is unknown: .* Did you mean 'builtin'"),
    ({"tasks": ("piqq",)}, RecipeError, "task 'piqq' is unknown. Did you mean 'piqa'"),
    ({"length": 4096}, RecipeError, "fidelity: tokens = 512 is less than one window of 4096"),
])
def test_unknown_texts_and_tasks_are_named_before_a_model_is_loaded(settings: dict[str, Any], error: type[Exception], message: str,
                                                                    tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        compare([str(tmp_path / "none"), str(tmp_path / "nothing")], asked(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_compared_is_refused(sources: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="1 model: expected the dense model and at least one other"):
        compare(sources[:1], asked(), tmp_path / "out")
    with pytest.raises(RecipeError, match="is named twice"):
        compare([*sources, sources[1]], asked(), tmp_path / "out")
    with pytest.raises(RecipeError, match="neither corpora nor tasks"):
        asked(corpora=())
    with pytest.raises(RecipeError, match="'builtin' is named twice"):
        asked(corpora=("builtin", "builtin"))
    with pytest.raises(LoadError, match="no such file or folder"):
        compare([sources[0], "./none"], asked(), tmp_path / "out")
    encoder = saved(tmp_path / "bert", tiny_model("bert"))
    with pytest.raises(RecipeError, match="bert' does not predict the next token"):
        compare([sources[0], encoder], asked(), tmp_path / "out")
    with pytest.raises(ExportError, match="exists, and is not of an earlier comparison"):
        compare(sources, asked(), Path(sources[0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file, expected a folder"):
        compare(sources, asked(), tmp_path / "file")


def test_losses_that_are_no_numbers_are_flagged_and_take_part_in_no_test(sources: list[str], data: Path, tmp_path: Path) -> None:
    ruined = tiny_model()
    with torch.no_grad():
        ruined.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    sources[2] = saved(tmp_path / "ruined", ruined)
    found = compare(sources, asked(tasks=("piqa",), limit=8), tmp_path / "out")
    assert found.flags[0].startswith("ruined is ruined or overflows: builtin test perplexity is not finite in 16 of 16 windows")
    for label in ("builtin test perplexity", "builtin test divergence from dense", "piqa acc_norm"):
        entry = row(found, label).entries[2]
        assert (entry.beside, entry.best, entry.interval) == (None, False, None)
    assert row(found, "builtin test perplexity").comparisons == 1
    files = write(found, tmp_path / "out")
    assert "ruined is ruined" in files[0].read_text().partition("<h2>")[0]


def test_a_folder_says_how_it_was_made_and_a_model_that_saw_the_text_is_flagged(text_file: Path, recipe_for: Callable[..., Any],
                                                                                tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", tiny_model())
    loaded = load(dense)
    save(prune(loaded.model, recipe_for(), tokenizer=loaded.tokenizer, source=dense), tmp_path / "pruned")
    found = compare([dense, str(tmp_path / "pruned")], asked(corpora=("builtin", str(text_file))), tmp_path / "out")
    made = found.models[1].made
    assert made is not None
    assert len(made.sites) == 14
    assert made.seconds > 0
    assert made.command == f"prunus prune {dense} --recipe {tmp_path}/pruned/recipe.toml --dtype float32 --out {tmp_path}/pruned-again"
    shares = {item.text: item.share for item in found.overlaps["pruned"]}
    assert shares == {"report text (builtin test)": 0.0, "report text (text.txt test)": pytest.approx(1.0, abs=0.01)}  # one word is cut
    assert any(flag.startswith("pruned may be reward-hacked: 99.87% of the report text (text.txt test)") for flag in found.flags)
    text_file.unlink()
    again = compare([dense, str(tmp_path / "pruned")], asked(), tmp_path / "out")
    assert any("calibration text" in note and "cannot be read here" in note for note in again.notes)


def test_a_known_value_of_the_dense_model_is_held_against(sources: list[str], tmp_path: Path) -> None:
    first = compare(sources[:2], asked(), tmp_path / "out")
    dense = first.dense.measured[0]
    again = compare(sources[:2], asked(), tmp_path / "out", known=[Known(dense.value * 1.5, dense.protocol, "a paper")])
    assert again.sanity[0].off
    assert any(note.startswith("Not as known: the dense model's builtin test perplexity") for note in again.notes)
    with pytest.raises(ComparisonError, match="another protocol"):
        compare(sources[:2], asked(), tmp_path / "out", known=[Known(1.0, dense.protocol.replace("stride 32", "stride 16"), "a paper")])


def test_models_are_loaded_in_the_dense_model_s_dtype(sources: list[str], tmp_path: Path) -> None:
    saved(tmp_path / "small", tiny_model(dtype=torch.bfloat16))
    found = compare([sources[0], str(tmp_path / "small")], asked(), tmp_path / "out")
    assert found.models[1].read.startswith("float32")
    assert found.environment["dtype"] == "float32"
