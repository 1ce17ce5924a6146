"""Tasks are asked and scored as lm-evaluation-harness does it, example by example, whatever is spared on the way."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'prunus[tasks]')")

from prunus.evaluation import Context, Measurement
from prunus.evaluation.tasks import Tasks
from prunus.widening import widened

from ..asked import rows_of, written
from ..tiny import CAUSAL, tiny_model, tiny_tokenizer, uneven

pytestmark = pytest.mark.filterwarnings("ignore")
SPLITS = {"piqa": "validation", "arc_easy": "test", "winogrande": "validation", "lambada_openai": "test", "boolq": "validation",
          "gsm8k": "test"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PRUNUS_DATA with every small task."""
    for task, split in SPLITS.items():
        train = {} if task == "lambada_openai" else {"train": rows_of(task, 8, seed=1)}
        written(tmp_path / "data" / task, **{split: rows_of(task)}, **train)
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def theirs(model: Any, task: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Any = None, **settings: Any) -> tuple[dict[str, float], Any]:
    """What lm_eval.simple_evaluate finds, when the hub gives it the same documents."""
    import datasets
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from prunus.harness.catalogue import _manager

    rows = {SPLITS[task]: rows_of(task), "train": rows_of(task, 8, seed=1)}
    hub = datasets.DatasetDict({split: datasets.Dataset.from_list(list(found)) for split, found in rows.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: hub)
    harness = HFLM(pretrained=model, tokenizer=tokenizer or tiny_tokenizer(), batch_size=1)
    state = torch.get_rng_state()
    found = simple_evaluate(harness, tasks=[task], task_manager=_manager(task), bootstrap_iters=0, **settings)
    torch.set_rng_state(state)  # which simple_evaluate seeds
    numbers = {name.partition(",")[0]: value for name, value in found["results"][task].items() if isinstance(value, float)}
    return numbers, found["samples"][task]


def ours(model: Any, *tasks: str, tokenizer: Any = None, **settings: Any) -> list[Measurement]:
    return list(Tasks(tasks, **settings).measure(model, Context(tokenizer or tiny_tokenizer())))


@pytest.mark.parametrize("task", ["piqa", "arc_easy", "winogrande", "lambada_openai", "boolq"])
@pytest.mark.parametrize("family", CAUSAL)
def test_every_example_is_right_where_the_harness_has_it_right(family: str, task: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pruned model too: equal counts, and log-likelihoods that are equal but for rounding."""
    model = uneven(family)
    numbers, samples = theirs(model, task, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    for found in ours(model, task, metrics=tuple(numbers)):
        metric = found.label.split()[1]
        if found.kind == "losses":
            assert found.value == pytest.approx(numbers[metric], rel=1e-4)
            continue
        assert (found.value, len(found.parts)) == (numbers[metric], len(samples))
        assert list(found.parts) == [sample[metric] for sample in samples]
        for example, sample in zip(found.examples, samples, strict=True):
            assert example.likelihoods == pytest.approx([value for value, _ in sample["filtered_resps"]], abs=1e-3)


def test_documents_of_the_hub_and_of_a_folder_make_the_same_prompts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (local,) = ours(tiny_model(max_position_embeddings=1024), "arc_easy", shots=2)
    rows = {"test": rows_of("arc_easy"), "train": rows_of("arc_easy", 8, seed=1), "validation": rows_of("arc_easy", 3, seed=2)}
    hub = datasets.DatasetDict({split: datasets.Dataset.from_list(list(found)) for split, found in rows.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: hub)
    monkeypatch.setattr("prunus.harness.catalogue.reachable", lambda: True)
    monkeypatch.delenv("PRUNUS_DATA")
    (found,) = ours(tiny_model(max_position_embeddings=1024), "arc_easy", shots=2)
    assert (found.protocol, found.parts) == (local.protocol, local.parts)


@pytest.mark.parametrize("shots", [0, 3])
def test_shots_are_the_harness_s_own(shots: int, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(max_position_embeddings=1024)
    numbers, _ = theirs(model, "arc_easy", monkeypatch, num_fewshot=shots)
    monkeypatch.undo()
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    found, other = (ours(model, "arc_easy", shots=shots, seed=seed)[0] for seed in (1234, 5))
    assert found.value == numbers["acc_norm"]
    assert f"{shots} shots" in found.protocol
    prompts = [next(part for part in item.protocol.split(", ") if part.startswith("prompts")) for item in (found, other)]
    assert (prompts[0] != prompts[1]) == (shots > 0)


def test_text_that_is_written_is_the_harness_s_own(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(max_position_embeddings=2048)
    numbers, samples = theirs(model, "gsm8k", monkeypatch, limit=3)
    monkeypatch.undo()
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    (found,) = ours(model, "gsm8k", limit=3, batch=1)
    assert found.value == numbers["exact_match"]
    assert [example.said for example in found.examples] == [sample["filtered_resps"][0] for sample in samples[:3]]
    assert "first 3 of 12 examples, 5 shots" in found.protocol


def test_a_context_that_choices_share_is_read_once(data: Path) -> None:
    """As many tokens as contexts and continuations have, and no more; without sharing a context is read with every choice."""
    from prunus.harness.scorer import Scorer

    def tokens_read(shared: bool) -> int:
        model, read = tiny_model(), [0]
        scorer = Scorer(model, tiny_tokenizer(), 1, lambda done: None)
        assert scorer._shares
        scorer._shares = shared
        body = model.base_model.forward

        def counted(**named: Any) -> Any:  # which the head, with the body's output known, does not call
            read[0] += named["input_ids"].numel()
            return body(**named)

        model.base_model.forward = counted
        context, ways = list(range(40)), [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
        found[shared] = scorer._loglikelihood_tokens([(None, context, way) for way in ways])
        return read[0]

    found: dict[bool, Any] = {}
    assert tokens_read(True) == 40 + 3 * 3
    assert tokens_read(False) == 3 * (40 + 3)
    assert [value for value, _ in found[True]] == pytest.approx([value for value, _ in found[False]], abs=1e-4)
    assert [same for _, same in found[True]] == [same for _, same in found[False]]


def test_a_long_context_is_cut_as_the_harness_cuts_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    from prunus.harness.scorer import Scorer

    requests = [(None, [place % 250 for place in range(200)], [3, 4, 5]), (None, [1, 2, 3, 4], [5, 6])]
    model = tiny_model()
    plain = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=1)._loglikelihood_tokens(requests, disable_tqdm=True)
    found = Scorer(model, tiny_tokenizer(), 1, lambda done: None)._loglikelihood_tokens(requests)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in plain], abs=1e-3)


def test_in_half_precision_every_pass_is_the_harness_s_own(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    with widened():  # so that both round alike, on every processor
        _, samples = theirs(model, "arc_easy", monkeypatch)
    monkeypatch.undo()
    monkeypatch.setenv("PRUNUS_DATA", str(data))
    (found,) = ours(model, "arc_easy", batch=1)
    exact = [tuple(value for value, _ in sample["filtered_resps"]) for sample in samples]
    assert [example.likelihoods for example in found.examples] == exact
    assert found.protocol.endswith("1 together")


def test_a_model_whose_cache_says_something_else_is_not_trusted_with_it() -> None:
    """The check at the beginning sees it, and contexts are read with every choice."""
    from prunus.harness.scorer import Scorer

    model = tiny_model()
    real = model.base_model.forward

    def forgetful(*given: Any, past_key_values: Any = None, **named: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length():
            named.pop("attention_mask", None)
            past_key_values = None
        return real(*given, past_key_values=past_key_values, **named)

    model.base_model.forward = forgetful
    scorer = Scorer(model, tiny_tokenizer(), 1, lambda done: None)
    assert (scorer.own_passes, scorer._shares) == (True, False)


def test_a_number_of_several_tasks_is_that_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmlu: examples weigh the same; each subject has its own."""
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    subjects = [file.stem.removeprefix("mmlu_") for file in _mmlu().glob("mmlu_*.yaml")]
    rows = [{"question": f"{place} {subject}?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": place % 4}
            for number, subject in enumerate(sorted(subjects)) for place in range(1 + number % 2)]
    written(tmp_path / "mmlu", test=rows, dev=rows)
    model = tiny_model(max_position_embeddings=1024)
    (found,) = ours(model, "mmlu")
    assert len(found.parts) == len(rows)
    assert found.value == math.fsum(found.parts) / len(rows)
    assert found.label == "mmlu acc"
    assert "57 tasks of which examples weigh the same" in found.protocol
    alone = [ours(model, f"mmlu_{subject}")[0] for subject in sorted(subjects)[:2]]
    by_name = {example.name.split("/")[0]: part for example, part in zip(found.examples, found.parts, strict=True)}
    assert by_name[f"mmlu_{sorted(subjects)[0]}"] == alone[0].parts[0]


def _mmlu() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
