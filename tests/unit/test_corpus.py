"""Text from files, folders and CPython; windows that do not overlap."""

import gzip
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.calibration.corpus import Text, files_of, overlap, read, windows
from prunus.calibration.sample import Calibration
from prunus.criteria.wanda import Wanda
from prunus.errors import CorpusError, MissingExtra
from prunus.evaluation.perplexity import Perplexity
from prunus.guards import SHARED, overlaps
from prunus.recipe import Recipe, Stage
from prunus.search.plan import Search
from prunus.solvers.mask import Mask

from ..tiny import tiny_tokenizer


def write(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(content.encode()))
    else:
        file.write_text(content, encoding="utf-8")
    return file


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a.raw.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    assert read(str(write(tmp_path / name, "Über\n\nall\n"))).documents == ("Über\n\nall\n",)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "c4-train.00000-of-01024.json.gz", "a.json"])
def test_every_row_of_a_jsonl_file_is_a_document(tmp_path: Path, name: str) -> None:
    assert read(str(write(tmp_path / name, rows("one", "two\nlines") + "\n"))).documents == ("one", "two\nlines")


@pytest.mark.parametrize(("content", "reason"), [
    (rows("one", "two") + "{broken\n", "line 3"),
    (rows("one") + '{"body": "two"}\n', r'line 2: expected an object with a string "text", found keys body'),
    (rows("one") + '["two"]\n', r'line 2: expected an object with a string "text", found list'),
    (rows("one") + '{"text": 2}\n', r'line 2: expected an object with a string "text"'),
], ids=["broken", "no text", "no object", "no string"])
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=rf"a\.jsonl.*{reason}"):
        read(str(write(tmp_path / "a.jsonl", content)))


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(CorpusError, match="it is empty"):
        read(str(write(tmp_path / "a.txt", content)))


def test_empty_rows_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="it is empty"):
        read(str(write(tmp_path / "a.jsonl", rows("", "  "))))


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:-20], lambda whole: whole[:30] + b"\xff" * 20 + whole[50:], lambda whole: b"no gzip at all",
], ids=["truncated", "altered", "not gzip"])
def test_a_damaged_gzip_file_is_refused_in_one_line(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "a.txt.gz"
    file.write_bytes(damage(gzip.compress(bytes(range(32, 127)) * 40)))
    with pytest.raises(CorpusError, match=r"a\.txt\.gz: cannot be read") as refused:
        read(str(file))
    assert "\n" not in str(refused.value)


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(CorpusError, match="cannot be read as UTF-8 text"):
        read(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("corpus", ["nowhere.txt", "folder/nowhere", "nowhere.jsonl.gz"])
def test_a_missing_file_is_refused_as_a_file(corpus: str) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        read(corpus)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CorpusError, match=r"'wikitext' is unknown: .*PRUNUS_DATA \(not set\).*c4, wikitext2, ptb, builtin, self"):
        read("wikitext")


def test_a_known_name_that_is_nowhere_says_which_extra_is_missing_or_that_the_hub_is_silent() -> None:
    with pytest.raises((MissingExtra, CorpusError), match=r"prunus\[data\]|hub gave no answer|hub cannot be reached"):
        read("ptb", "test")


@pytest.mark.parametrize(("split", "expected"), [("train", "calibration"), ("validation", "validation"), ("test", "test")])
def test_a_folder_of_prunus_data_has_one_file_per_split(data: Path, split: str, expected: str) -> None:
    write(data / "news" / "calib.jsonl.gz", rows("calibration"))
    write(data / "news" / "news.valid.txt.gz", "validation")
    write(data / "news" / "news.test.txt", "test")
    write(data / "news" / "SOURCE.md", "where it comes from")
    assert read("news", split).documents == (expected,)


def test_a_split_that_the_folder_lacks_is_refused_with_what_it_holds(data: Path) -> None:
    write(data / "news" / "calib.jsonl.gz", rows("calibration"))
    with pytest.raises(CorpusError, match=r"'news' has no split 'test' in .*found calib\.jsonl\.gz"):
        read("news", "test")
    with pytest.raises(CorpusError, match=r"split 'dev' is unknown\. Known: train, validation, test"):
        read("news", "dev")


def test_wikitext_is_joined_as_the_rows_of_the_hub_are() -> None:
    """Hub rows keep the newline of a line that has words and are "" for one that has none; GPTQ joins them with an empty line."""
    raw = " \n = Title = \n \n First sentence . \n Second .\n"
    hub = ["", " = Title = \n", "", " First sentence . \n", " Second .\n"]
    assert _wikitext(raw) == "\n\n".join(hub)


def _wikitext(raw: str) -> str:
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "PRUNUS_DATA", folder)
        write(Path(folder) / "wikitext2" / "wiki.test.raw.gz", raw)
        (document,) = read("wikitext2", "test").documents
    return document


def test_ptb_is_one_line_of_words(data: Path) -> None:
    write(data / "ptb" / "ptb.valid.txt.gz", " no it was n't <unk> \n the N stocks \n")
    text = read("ptb", "validation")
    assert text.documents == ("no it was n't <unk> the N stocks",)
    assert text.joined == "rows joined by ' '"


def test_a_file_goes_before_a_folder_and_a_folder_before_the_hub(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(data / "c4" / "train.txt", "from the folder")
    assert read("c4").documents == ("from the folder",)
    monkeypatch.chdir(data)
    write(data / "here.txt", "a file")
    assert read("here.txt").documents == ("a file",)


def test_the_builtin_parts_are_english_and_share_no_line() -> None:
    parts = {split: read("builtin", split) for split in ("train", "validation", "test")}
    for one, other in permutations(parts.values(), 2):
        assert overlap(one, other) == 0
    for part in parts.values():
        assert sum(map(len, part.documents)) > 50_000
        assert any(" the " in document for document in part.documents)
    assert not set(parts["validation"].documents) & set(parts["test"].documents)
    with pytest.raises(CorpusError, match="split 'dev' is unknown"):
        read("builtin", "dev")


def test_builtin_text_serves_calibration_search_and_report_at_once() -> None:
    stage = Stage(solver=Mask(Wanda()), search=Search(text=Calibration("builtin", "validation")))
    found = overlaps(Recipe((stage,), Calibration("builtin"), (Perplexity("builtin"),)), True)
    assert len(found) == 3
    assert max(item.share for item in found) < SHARED


def test_a_digest_tells_texts_apart_also_where_documents_are_split_elsewhere() -> None:
    digests = {Text("a", "train", documents, "").digest for documents in [("ab", "c"), ("a", "bc"), ("abc",)]}
    assert len(digests) == 3


def test_overlap_is_the_share_of_long_lines_that_both_have() -> None:
    shared, other = "a line that is long enough not to be shared by chance", "another one that stands in the second text only .."
    ours = Text("a", "train", (f"{shared}\nshort",), "")
    assert overlap(ours, Text("b", "test", (f"  {shared}\n{other}\nshort",), "")) == len(shared) / (len(shared) + len(other))


def test_the_same_text_overlaps_wholly_however_short_its_lines_are() -> None:
    text = Text("a", "train", ("one\ntwo\nthree",), "")
    assert overlap(text, Text("b", "test", ("one\ntwo\nthree",), "")) == 1
    assert overlap(text, Text("b", "test", ("four\nfive",), "")) == 0


NUMBERS = Text("numbers", "train", (" ".join(str(number) for number in range(3000)),), "")
MANY = Text("many", "train", tuple(f"document {number} has words of its own" for number in range(300)), "")


def table_of(text: Text = NUMBERS, length: int = 16, count: int | None = 12, **settings: Any) -> torch.Tensor:
    return windows(text, tiny_tokenizer(), length, count, **settings)


def test_windows_without_a_seed_are_the_beginning_of_the_text_in_order() -> None:
    table = table_of()
    assert table.shape == (12, 16)
    assert tiny_tokenizer().decode(table.flatten()) == NUMBERS.documents[0][: 12 * 16]


@pytest.mark.parametrize("text", [NUMBERS, MANY], ids=["one document", "many documents"])
def test_windows_are_chosen_by_the_seed_and_do_not_overlap(text: Text) -> None:
    drawn = table_of(text, seed=1)
    assert torch.equal(drawn, table_of(text, seed=1))
    assert not torch.equal(drawn, table_of(text, seed=2))
    everything = "\n\n".join(text.documents)
    if text is NUMBERS:
        places = [everything.index(tiny_tokenizer().decode(row)) for row in drawn]
        assert all(place % 16 == 0 for place in places)
        assert len(set(places)) == 12
    else:
        joined = tiny_tokenizer().decode(drawn.flatten())
        whole = [piece for piece in joined.split("\n\n")[:-1] if piece in text.documents]
        assert len(whole) == len(set(whole)) >= 4


def test_the_files_of_a_corpus_are_known_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    for name in ("train.jsonl.gz", "validation_matched.jsonl", "notes.csv"):
        (tmp_path / "mine" / name).write_bytes(b"")
    found = files_of("mine")
    assert {split: file.name for split, file in found.items()} == {"train": "train.jsonl.gz", "validation": "validation_matched.jsonl"}
    assert list(found) == ["train", "validation"]
    assert files_of(str(tmp_path / "mine" / "notes.csv")) == {"train": tmp_path / "mine" / "notes.csv"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.jsonl").write_bytes(b"")
    for name, reason in (("other", "has no split 'train' .* found rows.jsonl"), ("nowhere", "no such file, and no such folder"),
                         ("builtin", "no such file, and no such folder")):
        with pytest.raises(CorpusError, match=reason):
            files_of(name)


def test_all_windows_of_the_text_are_given_when_no_count_limits_them() -> None:
    size = len(NUMBERS.documents[0])
    assert len(table_of(count=None)) == size // 16
    assert len(table_of(count=10**9)) == size // 16


def test_documents_beyond_the_first_batch_are_joined_by_an_empty_line_too() -> None:
    table = table_of(MANY, 50, None)
    assert tiny_tokenizer().decode(table.flatten()) == "\n\n".join(MANY.documents)[: table.numel()]


def test_bos_stands_at_the_beginning_of_every_window_once_and_takes_no_text_away() -> None:
    for adds_bos_itself in (False, True):
        table = windows(NUMBERS, tiny_tokenizer(bos=adds_bos_itself), 16, 12, bos=True)
        assert table.shape == (12, 16)
        assert (table == 256).sum(1).tolist() == [1] * 12
        assert (table[:, 0] == 256).all()
        assert tiny_tokenizer().decode(table[:, 1:].flatten()) == NUMBERS.documents[0][: 12 * 15]


def test_without_bos_there_is_none_even_if_the_tokenizer_adds_it_by_itself() -> None:
    assert not (windows(NUMBERS, tiny_tokenizer(bos=True), 16, 12, bos=False) == 256).any()


def test_a_text_shorter_than_one_window_is_refused_with_its_length() -> None:
    with pytest.raises(CorpusError, match=r"'short', split train: 5 tokens, shorter than one sequence of 16"):
        table_of(Text("short", "train", ("words",), ""))
