"""Runs of 13 words that two texts share: counted, placed, and none of the text kept."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from prunus.calibration.corpus import QUESTIONS, Text
from prunus.grams import WORDS, Looked, grams_of, overlap_of, run_of

Prose = Callable[[int, int], str]


def test_a_part_of_one_text_in_another_is_counted_and_placed(prose: Prose) -> None:
    """30 words of a calibration text stand at word 40 of the report text's second document: 18 runs of 13."""
    calibration, report = prose(400, 1).split(), prose(200, 2).split()
    documents = (prose(50, 3), " ".join([*report[:40], *calibration[100:130], *report[40:]]))
    found = overlap_of(grams_of([" ".join(calibration)]), grams_of(documents), ("calibration", "report"))
    assert (found.runs, found.shared) == (50 - WORDS + 1 + 230 - WORDS + 1, 30 - WORDS + 1)
    assert found.example == (1, 40)
    assert found.share == found.shared / found.runs
    assert str(found) == (f"{found.share:.2%} of the report (18 of 256 runs of 13 words) stand in the calibration, "
                          "first at word 41 of document 2")


def test_texts_of_their_own_share_nothing(prose: Prose) -> None:
    found = overlap_of(grams_of([prose(3000, 1)]), grams_of([prose(3000, 2)]))
    assert (found.shared, found.share, found.example) == (0, 0.0, None)


def test_a_text_shares_all_of_itself_whatever_its_lines_its_letters_and_its_points_are(prose: Prose) -> None:
    text = prose(500, 1)
    other = text.upper().replace("\n", " -- ").replace(" ", ",  ")
    assert overlap_of(grams_of([text]), grams_of([other])).share == 1
    assert overlap_of(grams_of(["ﬁne Café " * 20]), grams_of(["fine Cafe\u0301 " * 20])).share == 1  # NFKC


def test_no_run_goes_from_one_document_to_the_next_and_the_order_of_words_counts(prose: Prose) -> None:
    words = prose(24, 1).split()
    whole = grams_of([" ".join(words)])
    assert len(whole.hashes) == 12
    assert len(grams_of([" ".join(words[:12]), " ".join(words[12:])]).hashes) == 0
    assert overlap_of(whole, grams_of([" ".join(reversed(words))])).shared == 0
    assert overlap_of(whole, grams_of([""])).share == 0


def test_short_documents_are_found_by_shorter_runs(prose: Prose) -> None:
    """19 of 20 questions have nine words or more: runs of nine; but never of fewer than eight."""
    words = prose(400, 1).split()
    questions = [" ".join(words[start : start + 9]) for start in range(0, 360, 9)]
    assert run_of(["a plum", *questions[:19]]) == run_of(questions) == 9
    assert run_of(["a plum"] * 20) == 8
    assert run_of([prose(200, 2)]) == run_of([]) == run_of(["", " . "]) == 13
    asked = Text("fruit", "test", tuple(questions), QUESTIONS)
    found = Looked().overlap(Text("c4", "train", (" ".join(words[:180]),), ""), asked, ("c4", "fruit"))
    assert (found.words, found.runs, found.shared) == (9, 40, 20)
    assert "(20 of 40 runs of 9 words)" in str(found)
    assert Looked().overlap(asked, replace(asked, joined=""), ("a", "b")).runs == 0


def test_what_is_kept_is_hashes_in_place_of_text(prose: Prose) -> None:
    found = grams_of([prose(100, 1)])
    assert found.hashes.dtype == "uint64"
    assert found.begins == ((0, 0),)
    assert (found.hashes == grams_of([prose(100, 1)]).hashes).all()


def test_four_megabytes_take_seconds(prose: Prose) -> None:
    text = prose(800_000, 1)
    assert len(text) > 4e6
    start = time.perf_counter()
    assert overlap_of(grams_of([text]), grams_of([text[:2_000_000]])).share == pytest.approx(1, abs=1e-4)
    assert time.perf_counter() - start < 10


def test_the_beginning_of_a_text_is_as_many_characters_in_its_documents() -> None:
    text = Text("a", "test", ("12345", "678", "90"), "joined")
    assert text.beginning(7).documents == ("12345", "67")
    assert text.beginning(8).documents == ("12345", "678")
    assert text.beginning(100) == text
