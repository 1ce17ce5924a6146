"""Tasks: their columns are found, their splits are what they say, and what cannot be a task is refused in one line."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.calibration.tasks import Task, encoded
from prunus.errors import CorpusError, RecipeError
from prunus.loading import load

from ..conftest import WORDS
from ..tiny import tiny_model, tiny_tokenizer

Row = dict[str, Any]


def rows_of(count: int, seed: int = 0, **more: Any) -> list[Row]:
    rng = random.Random(seed)
    return [{"sentence": " ".join(rng.choices(WORDS, k=rng.randint(2, 8))), "label": index % 2, **more} for index in range(count)]


def written(folder: Path, rows: list[Any], name: str = "mine.jsonl") -> str:
    folder.mkdir(exist_ok=True, parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(folder / name)


@pytest.mark.parametrize(("row", "columns"), [
    ({"sentence": "a", "label": 1, "source": "gj04"}, ("sentence", "label")),
    ({"idx": 0, "sentence1": "a", "sentence2": "b", "label": 1}, ("sentence1", "sentence2", "label")),
    ({"idx": 0, "question": "a", "sentence": "b", "label": 1}, ("question", "sentence", "label")),
    ({"premise": "a", "hypothesis": "b", "gold": "x"}, ("premise", "hypothesis", "gold")),
    ({"body": "a", "class": 3}, ("body", "class")), ({"left": "a", "right": "b", "score": 3}, ("left", "right", "score")),
    ({"text": "a", "author": "b", "place": "c", "label": "x"}, ("text", "label")),
])
def test_columns_are_found(row: Row, columns: tuple[str, ...], tmp_path: Path) -> None:
    label = columns[-1]
    rows = [{**row, label: value} for value in (1, 2) * 10]
    assert Task(written(tmp_path, rows)).read().columns == columns


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "c": "z", "right": index % 2} for index in range(20)]
    read = Task(written(tmp_path, rows), text=("c", "a"), label="right").read()
    assert read.train.texts[0] == ("z", "x")
    with pytest.raises(CorpusError, match=r"mine\.jsonl: no column 'd', found a, b, c, right\. Name the columns: text="):
        Task(written(tmp_path, rows), text=("d",), label="right").read()
    with pytest.raises(CorpusError, match=r"no column 'label', found a, b, c, right\."):
        Task(written(tmp_path, rows), text=("a",)).read()
    with pytest.raises(CorpusError, match="no column of text with a name that is known, found a, b, c, right"):
        Task(written(tmp_path, rows), label="right").read()


def test_the_training_file_is_split_by_the_seed_and_the_validation_file_is_the_test(tmp_path: Path,
                                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    train, test = rows_of(100), rows_of(30, seed=1)
    written(tmp_path / "task", train, "train.jsonl.gz")
    written(tmp_path / "task", test, "validation.jsonl.gz")
    first, again, other = Task("task").read(), Task("task").read(), Task("task", seed=1).read()
    assert first == again
    assert (len(first.train), len(first.validation), len(first.test)) == (70, 30, 30)
    assert first.test.texts == tuple((row["sentence"],) for row in test)
    assert other.test == first.test
    assert other.train.digest != first.train.digest
    both = Counter([*first.train.texts, *first.validation.texts])
    assert both == Counter((row["sentence"],) for row in train) == Counter([*other.train.texts, *other.validation.texts])


def test_a_corpus_of_one_file_has_a_fifth_apart_for_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    written(tmp_path / "qnli", rows_of(100), "validation_partA.jsonl.gz")
    reads = [Task("qnli", seed=seed).read() for seed in (0, 1)]
    assert [(len(read.train), len(read.validation), len(read.test)) for read in reads] == [(56, 24, 20)] * 2
    assert reads[0].test == reads[1].test
    everything = [text for part in (reads[0].train, reads[0].validation, reads[0].test) for text in part.texts]
    assert Counter(everything) == Counter((row["sentence"],) for row in rows_of(100))


def test_a_test_file_can_be_named(tmp_path: Path) -> None:
    task = Task(written(tmp_path, rows_of(100)), test=written(tmp_path, rows_of(10, seed=1), "other.jsonl"))
    assert (len(task.read().train), len(task.read().test)) == (70, 10)
    with pytest.raises(CorpusError, match="is the training file too"):
        Task(written(tmp_path, rows_of(100)), test=written(tmp_path, rows_of(100))).read()
    with pytest.raises(CorpusError, match=r"test 'nowhere\.jsonl': no such file"):
        Task(written(tmp_path, rows_of(100)), test="nowhere.jsonl").read()


def test_a_subset_is_the_same_for_every_seed_and_validation_has_a_limit(tmp_path: Path) -> None:
    file = written(tmp_path, rows_of(200))
    subsets = [Task(file, rows=50, validation=4, seed=seed).read() for seed in (0, 1)]
    assert [(len(read.train), len(read.validation)) for read in subsets] == [(35, 4)] * 2
    whole = [Task(file, rows=50, validation=0, seed=seed).read() for seed in (0, 1)]
    assert [len(read.validation) for read in whole] == [15, 15]
    texts = [Counter([*read.train.texts, *read.validation.texts]) for read in whole]
    assert texts[0] == texts[1]
    assert subsets[0].validation.texts == whole[0].validation.texts[:4]


@pytest.mark.parametrize(("labels", "names", "metric"), [
    ([10, 9], ("9", "10"), "accuracy"), (["no", "maybe", "yes"], ("maybe", "no", "yes"), "accuracy"), ([0.5, 1.0], ("label",), "spearman"),
    ([True, False], ("False", "True"), "accuracy"), ([1, 2.5], ("label",), "spearman"),
])
def test_labels_say_what_kind_of_task_it_is(labels: list[Any], names: tuple[str, ...], metric: str, tmp_path: Path) -> None:
    rows = [{**row, "label": labels[index % len(labels)]} for index, row in enumerate(rows_of(60))]
    read = Task(written(tmp_path, rows)).read()
    assert (read.labels, read.metric, read.regression) == (names, metric, len(names) == 1)


def test_the_kind_can_be_said(tmp_path: Path) -> None:
    stars = written(tmp_path, [{**row, "label": index % 5} for index, row in enumerate(rows_of(60))])
    assert Task(stars, kind="regression", metric="pearson").read().labels == ("label",)
    assert Task(stars).read().labels == ("0", "1", "2", "3", "4")
    floats = written(tmp_path, [{**row, "label": float(index % 2)} for index, row in enumerate(rows_of(60))])
    assert Task(floats, kind="classification", metric="f1").read().labels == ("0.0", "1.0")


@pytest.mark.parametrize(("rows", "reason"), [
    ([], r"mine\.jsonl: it has no example\."),
    ([{**row, "label": 1} for row in rows_of(20)], r"task 'mine\.jsonl': all 11 examples for training have the label 1; expected two"),
    (rows_of(2), r"no example is left for test; 2 in all"),
    ([*rows_of(20), {"sentence": "a"}], r"mine\.jsonl, line 21: no 'label', found sentence\."),
    ([*rows_of(20), {"sentence": "a", "label": None}], r"line 21: no 'label'"),
    ([*rows_of(20), {"sentence": " ", "label": 1}], r"line 21: expected text in sentence, found ' '"),
    ([*rows_of(20), {"sentence": 7, "label": 1}], r"line 21: expected text in sentence, found 7"),
    ([*rows_of(20), {"sentence": "a", "label": [1]}], r"line 21: 'label' is \[1\], expected a word or a number"),
    ([*rows_of(20), *rows_of(20, label="x")], r"some labels are words and others numbers \(0, 1, x\)"),
    ([*rows_of(40), *({**row, "label": float("nan")} for row in rows_of(20))], r"label nan, expected a number"),
    ([1, 2], r"line 1: expected an object, found int"),
], ids=["empty", "one class", "too few", "no label", "null", "blank", "no text", "list", "mixed", "nan", "no object"])
def test_what_is_no_task_is_refused_in_one_line(rows: list[Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=reason) as error:
        Task(written(tmp_path, rows)).read()
    assert "\n" not in str(error.value)


def test_labels_of_the_test_that_training_has_not_seen_are_refused_by_line(tmp_path: Path) -> None:
    test = written(tmp_path, [{"sentence": "a", "label": 0}, {"sentence": "b", "label": -1}], "test.jsonl")
    with pytest.raises(CorpusError, match=r"test\.jsonl, line 2: label -1 is not among those of the training split: 0, 1\."):
        Task(written(tmp_path, rows_of(20)), test=test).read()


def test_a_metric_that_does_not_fit_and_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, rows_of(20))
    with pytest.raises(CorpusError, match=r"task 'mine\.jsonl': metric 'spearman' is of numbers, and its labels are classes"):
        Task(file, metric="spearman").read()
    with pytest.raises(CorpusError, match="no such file, and no such folder in PRUNUS_DATA"):
        Task("nowhere").read()
    for settings in ({"text": ("a", "b", "c")}, {"rows": -1}, {"length": 3}):
        with pytest.raises(RecipeError, match="expected at most two columns"):
            Task(file, **settings)


def headed(checkpoint: Callable[..., Path], family: str, labels: tuple[str, ...]) -> tuple[Any, Any]:
    return tuple(load(checkpoint(family), labels=labels))  # type: ignore[return-value]


def test_a_batch_is_filled_up_behind_and_masked(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    read = Task(written(tmp_path, rows_of(20)), length=16).read()
    model, tokenizer = headed(checkpoint, "bert", read.labels)
    found = encoded(read, "train", model, tokenizer)
    given = found.batch([3, 0, 7])
    lengths = [min(16, len(read.train.texts[index][0].encode())) for index in (3, 0, 7)]
    assert given.keys() == {"input_ids", "attention_mask"}
    assert given["attention_mask"].sum(1).tolist() == lengths
    assert given["input_ids"].shape == (3, max(lengths))
    for tokens, mask, index in zip(given["input_ids"], given["attention_mask"], (3, 0, 7), strict=True):
        assert tokenizer.decode(tokens[mask.bool()]) == read.train.texts[index][0][:16]
        assert (tokens[~mask.bool()] == model.config.pad_token_id).all()
    assert found.targets.tolist() == list(read.train.labels)


def test_pairs_say_which_text_a_token_is_of_where_the_model_asks(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    rows = [{"sentence1": "abcd", "sentence2": "efghij", "label": index / 10} for index in range(20)]
    read = Task(written(tmp_path, rows), length=8).read()
    model, tokenizer = headed(checkpoint, "bert", read.labels)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own
    found = encoded(read, "test", model, tokenizer)
    assert found.batch([0])["token_type_ids"].tolist() == [list(found.types[0])]
    assert (found.tokens[0], found.types[0]) == (tuple(tokenizer("abcdefgh")["input_ids"]), (0, 0, 0, 0, 1, 1, 1, 1))
    assert (found.targets.dtype, found.classes) == (torch.float32, 1)
    assert found.targets.tolist() == pytest.approx(list(read.test.labels))
    without, _ = headed(checkpoint, "distilbert", read.labels)
    assert encoded(read, "test", without, tokenizer).batch([0]).keys() == {"input_ids", "attention_mask"}


def test_the_protocol_names_all_that_decides_the_number(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    read = Task(written(tmp_path, rows_of(40)), rows=20, length=32).read()
    model, tokenizer = headed(checkpoint, "bert", read.labels)
    assert encoded(read, "validation", model, tokenizer).protocol == (
        f"mine.jsonl validation, text sha256 {read.validation.digest}, 6 examples of 20 training rows, sentence, at most 32 tokens, "
        "float32, tokenizer of 260 words 42aa7b86")


def test_a_model_s_own_order_of_the_same_labels_is_kept(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    rows = [{**row, "label": ("no", "yes")[index % 2]} for index, row in enumerate(rows_of(20))]
    read = Task(written(tmp_path, rows)).read()
    model, tokenizer = headed(checkpoint, "bert", ("yes", "no"))
    targets = encoded(read, "train", model, tokenizer).targets.tolist()
    assert targets == [("yes", "no").index(label) for label in read.train.labels]


def test_a_model_without_the_head_or_the_length_is_refused(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    read = Task(written(tmp_path, rows_of(20))).read()
    with pytest.raises(RecipeError, match=r"needs a model with a head, and this is a BertForMaskedLM"):
        encoded(read, "train", tiny_model("bert"), tiny_tokenizer())
    with pytest.raises(RecipeError, match=r"has 2 labels \(0, 1\), and the model's head has 3 outputs"):
        encoded(read, "train", headed(checkpoint, "bert", ("a", "b", "c"))[0], tiny_tokenizer())
    long = Task(written(tmp_path, rows_of(20)), length=500).read()
    with pytest.raises(RecipeError, match=r"task\.length = 500: the model takes at most 128 tokens"):
        encoded(long, "train", headed(checkpoint, "bert", ("a", "b"))[0], tiny_tokenizer())
