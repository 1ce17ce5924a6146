"""The laws that every format obeys: save, load with plain transformers, equal logits; or nothing written at all."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.budget import Budget
from prunus.checkpoint import check_no_search, check_target
from prunus.errors import ExportError
from prunus.evaluation.perplexity import Perplexity
from prunus.export import Format
from prunus.export.huggingface import save
from prunus.loading import Loaded
from prunus.lookup import find, names
from prunus.pipeline import prune
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.traits import model_bytes

from ..tiny import FAMILIES, tiny_model, tiny_tokenizer

TOKENS = torch.arange(2 * 20).view(2, 20) * 7 % 256
# Plain folders; what the others can say, and how they are opened, is in tests/pipeline/test_formats.py and test_gguf.py.
every_format = pytest.mark.parametrize("format", ["huggingface", "padded"])


@pytest.fixture
def pruned(recipe_for: Callable[..., Recipe]) -> Callable[..., Pruned]:
    """`pruned(family, …)`: half the weights of a tiny model gone."""
    def make(family: str = "llama", metrics: tuple[Any, ...] = (), **settings: Any) -> Pruned:
        recipe = recipe_for(budget=Budget(0.5), solver=find("solvers", "mask")(), metrics=metrics)
        return prune(tiny_model(family, **settings), recipe, tokenizer=tiny_tokenizer(), source="tiny")
    return make


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def zeros(model: Any) -> int:
    return sum(int((parameter == 0).sum()) for parameter in model.parameters())


@every_format
@pytest.mark.parametrize("family", FAMILIES)
def test_what_plain_transformers_loads_computes_exactly_the_same(format: str, family: str, pruned: Any, tmp_path: Path) -> None:
    result = pruned(family)
    save(result, tmp_path / "out", format)
    loaded = getattr(transformers, FAMILIES[family][2]).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(result.model))
    assert zeros(loaded) == zeros(result.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("prunus")["input_ids"] == tiny_tokenizer()("prunus")["input_ids"]


@every_format
@pytest.mark.parametrize("settings", [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"tie_word_embeddings": True}],
                         ids=["bfloat16", "float16", "tied"])
def test_dtype_and_ties_are_kept(format: str, settings: dict[str, Any], pruned: Any, tmp_path: Path) -> None:
    result = pruned(**settings)
    save(result, tmp_path / "out", format)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert loaded.dtype == result.model.dtype
    assert torch.equal(logits(loaded), logits(result.model))
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert model_bytes(result.model) < size < model_bytes(result.model) + 20_000


def test_the_papers_lie_beside_the_weights(pruned: Any, text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_text("measured on words of its own, with lines that are long enough to be told from others. " * 40)
    result = pruned(metrics=(Perplexity(str(file), length=32, tokens=320),))
    save(result, tmp_path / "out")
    folder = tmp_path / "out"
    assert Recipe.load(folder / "recipe.toml") == result.report.recipe
    assert json.loads((folder / "allocation.json").read_text()) == [dict(stage) for stage in result.report.allocation]
    report = json.loads((folder / "report.json").read_text())
    assert report["sparsity"] == result.report.sparsity
    assert report["before"][0]["value"] == result.report.before[0].value
    assert len(report["sites"]) == 14
    card = (folder / "README.md").read_text()
    assert f"{result.report.after[0].value:.2f}" in card
    assert result.report.before[0].protocol in card


@every_format
def test_a_folder_that_is_in_use_is_refused_and_left_alone(format: str, pruned: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match=r"exists and is not empty\. Choose another folder or say --overwrite"):
        save(pruned(), tmp_path / "out", format)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@every_format
def test_an_empty_folder_is_as_good_as_none_and_parents_are_made(format: str, pruned: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save(pruned(), tmp_path / "out", format)
    save(pruned(), tmp_path / "a" / "b" / "c", format)
    for folder in (tmp_path / "out", tmp_path / "a" / "b" / "c"):
        assert (folder / "config.json").is_file()
        assert folder.stat().st_mode & 0o777 == 0o755


@every_format
def test_overwriting_replaces_the_model_and_leaves_no_old_weight_behind(format: str, pruned: Any, tmp_path: Path) -> None:
    first = pruned(seed=1)
    find("export", format)(shard="30KB").save(first, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    result = pruned()
    save(result, tmp_path / "out", format, overwrite=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(result.model))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    assert not list((tmp_path / "out").glob("*.index.json"))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@every_format
def test_a_file_in_the_place_of_the_folder_is_refused(format: str, pruned: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportError, match="is a file, expected a folder"):
        save(pruned(), tmp_path / "out", format, overwrite=True)


@every_format
def test_a_full_disk_is_refused_before_a_byte_is_written(format: str, pruned: Any, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    result = pruned()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, model_bytes(result.model)))
    with pytest.raises(ExportError, match=r"needs 0 MiB, but .* has 0 MiB free"):
        save(result, tmp_path / "new" / "out", format)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 2 * model_bytes(result.model)))
    save(result, tmp_path / "new" / "out", format)


@every_format
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")], ids=repr)
def test_a_failure_half_way_leaves_nothing_behind(format: str, error: BaseException, pruned: Any, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "half.json").write_text("{")
        raise error

    result = pruned()
    monkeypatch.setattr(type(result.tokenizer), "save_pretrained", fail)
    with pytest.raises((ExportError, KeyboardInterrupt, RuntimeError)) as raised:
        save(result, tmp_path / "out", format)
    assert isinstance(raised.value, ExportError) == isinstance(error, OSError)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "text.txt"] == []


@every_format
def test_weights_that_the_disk_cannot_hold_after_all_are_an_export_error(format: str, pruned: Any, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes weights has an error of its own."""
    from safetensors import SafetensorError

    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    result = pruned()
    monkeypatch.setattr(type(result.model), "save_pretrained", fail)
    with pytest.raises(ExportError, match=r"cannot be written: .*No space left"):
        save(result, tmp_path / "out", format)


@pytest.mark.parametrize("format", names("export"))
def test_checking_writes_nothing_and_a_format_is_one(format: str, pruned: Any, tmp_path: Path) -> None:
    made = find("export", format)()
    assert isinstance(made, Format)
    result = pruned()
    made.check(Loaded(result.model, None, "tiny"), tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_saving_prints_nothing(pruned: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = pruned()
    capfd.readouterr()
    save(result, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_target_is_checked_without_a_model(tmp_path: Path) -> None:
    check_target(tmp_path / "x", False, 0)
    with pytest.raises(ExportError, match=r"needs \d+ MiB"):
        check_target(tmp_path / "x", False, 10**18)


@pytest.mark.parametrize("name", ["levels", "fits", "trained"])
def test_what_an_interrupted_search_leaves_may_be_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    check_target(tmp_path / "run", True, 0)
    (tmp_path / "run" / name).rename(tmp_path / "run" / "photographs")
    with pytest.raises(ExportError, match="holds neither a model nor a result"):
        check_target(tmp_path / "run", True, 0)


@pytest.mark.parametrize("name", ["front.json", "trials.jsonl", "fits", "trained"])
def test_no_model_goes_among_the_files_of_a_search(name: str, tmp_path: Path) -> None:
    """An interrupted one may have no more than what it collected first."""
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ExportError, match="holds a search"):
        check_no_search(tmp_path / "run")
    (tmp_path / "run" / name).rmdir()
    check_no_search(tmp_path / "run")
