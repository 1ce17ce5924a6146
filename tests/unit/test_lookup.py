"""A file of a plug-in folder is a plug-in."""

import pytest

from prunus.errors import UnknownName, nearest
from prunus.lookup import find, names
from prunus.solvers.sparsegpt import SparseGPT


def test_names_are_the_files_of_the_folder() -> None:
    assert {"alps", "mask", "refit", "sparsegpt"} <= set(names("solvers"))
    assert names("criteria") == sorted(names("criteria"))
    assert "__init__" not in names("solvers")


def test_a_name_finds_the_first_public_name_of_its_file() -> None:
    assert find("solvers", "sparsegpt") is SparseGPT


def test_a_module_and_a_class_find_a_plug_in_outside() -> None:
    assert find("solvers", "tests.outside:Halve").__name__ == "Halve"


@pytest.mark.parametrize("name", ["sparsegtp", "SparseGPT", "__init__", "", "tests.outside:Third", "tests.nowhere:Halve"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UnknownName, match=r"is unknown.*Known: alps, ladmm, mask, refit, sparsegpt, sparsellm, subset, swaps"):
        find("solvers", name)


def test_a_near_miss_is_answered_with_the_name_that_was_meant() -> None:
    assert nearest("sparsegtp", ["alps", "sparsegpt"]) == ". Did you mean 'sparsegpt'?"
    assert nearest("xyz", ["alps", "sparsegpt"]) == "."
