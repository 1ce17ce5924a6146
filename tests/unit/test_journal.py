"""Finished blocks come back from disk as they were; another run's are refused."""

from pathlib import Path

import pytest
import torch

from prunus.errors import RecipeError
from prunus.files import fingerprint
from prunus.journal import Journal
from prunus.result import SiteRecord

RECORDS = [SiteRecord("layers.0.a", 0.5, 0.501, 0.1 + 0.2, 1.5), SiteRecord("layers.0.b", 0.5, 0.5, None, 0.25)]
TENSORS = {"layers.0.a.weight": torch.arange(6.0).view(2, 3).T, "layers.0.b.weight": torch.ones(2, dtype=torch.bfloat16) / 3}


def test_tensors_and_records_come_back_bit_for_bit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.partial")
    journal.keep("me", 1, 12, TENSORS, RECORDS, ["layers.0.a: it diverged"])
    tensors, records, remarks = journal.recall(1, 12)
    assert (records, remarks) == (RECORDS, ["layers.0.a: it diverged"])
    assert all(torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_blocks_are_known_by_stage_and_number(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for stage, block in [(0, 0), (0, 11), (1, 2)]:
        journal.keep("me", stage, block, TENSORS, RECORDS)
    assert journal.done(0) == {0, 11}
    assert journal.done(1) == {2}
    assert journal.done(2) == frozenset()


def test_nothing_is_written_before_the_first_block_is_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.partial")
    journal.begin("me")
    assert journal.done(0) == frozenset()
    assert not journal.folder.exists()


def test_a_crash_while_writing_leaves_no_block_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "out.partial")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        journal.keep("me", 0, 0, TENSORS, RECORDS)
    assert journal.done(0) == frozenset()


def test_the_mark_of_a_run_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.keep("me", 0, 0, TENSORS, RECORDS)
    monkeypatch.setattr("prunus.journal.put_text", None)
    journal.keep("me", 0, 1, TENSORS, RECORDS)
    journal.begin("me")


def test_another_run_s_blocks_are_refused_and_one_s_own_are_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.keep("me", 0, 0, TENSORS, RECORDS)
    journal.begin("me")
    with pytest.raises(RecipeError, match="holds another run"):
        journal.begin("you")


def test_discarding_removes_the_folder_and_works_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.partial")
    journal.keep("me", 0, 0, TENSORS, RECORDS)
    journal.discard()
    journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_apart_where_one_part_ends() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", "c") == fingerprint("ab", "c")


def test_a_file_that_a_crash_of_the_machine_cut_off_is_no_finished_block(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    for block in (0, 1, 2):
        journal.keep("identity", 0, block, {"a.weight": torch.ones(8)}, [])
    whole = (tmp_path / "run" / "stage-0-block-1.safetensors").read_bytes()
    (tmp_path / "run" / "stage-0-block-1.safetensors").write_bytes(whole[:-5])
    (tmp_path / "run" / "stage-0-block-2.safetensors").write_bytes(b"")
    assert journal.done(0) == {0}
