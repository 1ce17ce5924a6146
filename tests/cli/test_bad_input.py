"""Bad input: one clear line on standard error, exit code 2, nothing written."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunus.anatomy import describe
from prunus.sites import Anatomy, LinearSite

from ..tiny import tiny_model
from .conftest import Ran

Prunus = Callable[..., Ran]


@pytest.fixture
def refused(prunus: Prunus, tmp_path: Path) -> Callable[..., None]:
    """Run quietly; there is the one line and nothing else, anywhere."""
    def check(words: list[Any], *reasons: str) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        ran = prunus(*words, "--quiet") if words[0] in ("prune", "allocate", "search", "export") else prunus(*words)
        assert ran.code == 2
        assert ran.out == ""
        lines = ran.err.splitlines()
        assert len(lines) == 1, ran.err
        assert lines[0].startswith("prunus: ")
        for reason in reasons:
            assert reason in lines[0]
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    return check


def test_a_missing_model(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", "prunus-nobody/nothing"):
        refused([quick[0], missing, *quick[2:]], f"model '{missing}'", "no such")


def test_a_folder_that_is_no_model(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused([quick[0], tmp_path / "folder", *quick[2:]], "not a model folder")


def test_an_unknown_architecture_with_the_known_ones(refused: Any, quick: list[Any]) -> None:
    for unknown in ("mamba", "never-heard-of"):
        (quick[1] / "config.json").write_text(json.dumps({"model_type": unknown}))
        refused(quick, "bert, distilbert, gemma2, gemma3_text, gpt2, gpt_neox, llama, mistral, opt, phi3, qwen2, qwen3, roberta")


def test_pickles_only(refused: Any, quick: list[Any]) -> None:
    (quick[1] / "model.safetensors").rename(quick[1] / "pytorch_model.bin")
    refused(quick, "its weights are pickles", "safetensors")


def test_a_truncated_safetensors_file(refused: Any, quick: list[Any]) -> None:
    file = quick[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(quick, str(file), "damaged or truncated")


def test_an_absent_corpus_for_calibration_or_for_the_report(refused: Any, quick: list[Any]) -> None:
    for flag in ("--calibration", "--evaluate"):
        refused([*quick, flag, "nowhere.txt"], "corpus 'nowhere.txt': no such file")
        refused([*quick, flag, "nowhere"], "corpus 'nowhere' is unknown")


def test_an_empty_corpus(refused: Any, quick: list[Any], text_file: Path) -> None:
    text_file.write_text(" \n")
    refused(quick, "it is empty")


def test_a_corpus_shorter_than_one_sequence(refused: Any, quick: list[Any], text_file: Path) -> None:
    text_file.write_text("short")
    refused(quick, "5 tokens, shorter than one sequence of 32")


@pytest.mark.parametrize(("sparsity", "hint"), [
    ("1", "in [0, 1)"), ("-0.5", "in [0, 1)"), ("50", "Did you mean 0.5?"), ("50%", "number"), ("half", "number"), ("nan", "in [0, 1)"),
])
def test_a_sparsity_that_is_no_fraction(sparsity: str, hint: str, refused: Any, quick: list[Any]) -> None:
    refused([*quick, "--sparsity", sparsity], "sparsity", hint)


def test_an_n_m_that_does_not_divide_the_width_or_contradicts_the_budget(refused: Any, quick: list[Any]) -> None:
    refused([*quick, "--granularity", "2:5"], "2:5 needs a multiple of 5 inputs, found 32")
    refused([*quick, "--granularity", "2:4", "--sparsity", "0.6"], "2:4 keeps 0.5 of the weights")
    refused([*quick, "--granularity", "5:4"], "expected 0 < n <= m")


def test_a_solver_that_cannot_do_the_granularity(refused: Any, quick: list[Any]) -> None:
    refused([*quick, "--granularity", "tile:4x4", "--solver", "sparsegpt"], "SparseGPT cannot do tile")


def test_a_criterion_of_channels_where_no_channels_go(refused: Any, quick: list[Any]) -> None:
    refused([*quick, "--solver", "refit,criterion=taylor"], "looks at the loss channel by channel", "Use channel sites")


@pytest.mark.parametrize("flags", [
    ["--solver", "sparsegtp"], ["--granularity", "dense"], ["--sites", "neuron"], ["--sites", "sublayer", "--allocation", "owl"],
    ["--allocation", "best"],
    ["--solver", "alps,iteration=3"], ["--dtype", "int4"], ["--device", "tpu"], ["--samples", "0"], ["--length", "9999"],
    ["--skip", "*"], ["--recipe", "nowhere.toml"],
], ids=" ".join)
def test_words_that_mean_nothing(flags: list[str], refused: Any, quick: list[Any]) -> None:
    refused(quick[:4] + flags if "--recipe" in flags else [*quick, *flags])


def test_unknown_keys_in_a_recipe_with_the_nearest_known_one(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[[stage]]\nsolvr = 'alps'\n")
    refused([*quick[:4], "--recipe", tmp_path / "r.toml"], "recipe.stage[0].solvr: unknown key. Did you mean 'solver'?")


def test_flags_beside_a_recipe(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("")
    refused([*quick, "--recipe", tmp_path / "r.toml"], "does not go with --recipe")


def test_an_output_folder_in_use(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(quick, "exists and is not empty", "--overwrite")
    refused([*quick, "--overwrite"], "holds neither a model nor a result of Prunus")


def test_an_output_that_is_the_model_itself(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(quick[1])
    for out in (quick[1], tmp_path / "link"):
        for words in (quick, ["finetune", quick[1]], ["search", quick[1], "--space", "small", "--objectives", "loss,params"],
                      ["analyse", quick[1]], ["quantise", quick[1]], ["export", quick[1], "--format", "padded"]):
            refused([*words, "--out", out, "--overwrite"], "is the model itself, which would be lost")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"])
def test_weights_that_are_not_finite_by_site(name: str, refused: Any, quick: list[Any], tmp_path: Path) -> None:
    tensors = load_file(quick[1] / "model.safetensors")
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, quick[1] / "model.safetensors", metadata={"format": "pt"})
    for solver in ("magnitude", "sparsegpt"):
        refused([*quick, "--solver", solver], name, "not finite")
    refused(["quantise", quick[1], "--out", tmp_path / "codes", "--quiet"], name, "not finite")
    refused(["analyse", quick[1], "--out", tmp_path / "looks", "--quiet"], name, "not finite")


@pytest.mark.parametrize("block", [0, 1])
def test_activations_that_are_not_finite_by_site(block: int, refused: Any, quick: list[Any]) -> None:
    tensors = load_file(quick[1] / "model.safetensors")
    tensors[f"model.layers.{block}.input_layernorm.weight"][:] = 3e38
    save_file(tensors, quick[1] / "model.safetensors", metadata={"format": "pt"})
    refused(quick, f"model.layers.{block}.self_attn.q_proj", "not finite")


def test_a_disk_that_is_too_small(refused: Any, quick: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    refused(quick, "MiB free")


def test_an_extra_that_is_not_installed(refused: Any, quick: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused([quick[0], tmp_path / "model.gguf", *quick[2:]], "pip install 'prunus[gguf]'")
    refused([*quick, "--calibration", "c4"], "pip install 'prunus[data]'")


def test_text_that_is_calibrated_and_reported_on(refused: Any, quick: list[Any], text_file: Path) -> None:
    refused([*quick, "--evaluate", text_file, "--evaluate-length", "64"], "holds 100% of the report text")


def test_work_of_an_interrupted_run_in_the_way(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    refused(quick, "--resume", "--overwrite")


@pytest.mark.parametrize("words", [["prune"], ["prune", "model"], ["prune", "model", "--out"], ["nothing"], ["describe"],
                                   ["prune", "model", "--out", "x", "--sparsty", "0.5"]], ids=" ".join)
def test_words_that_are_missing_or_too_many(words: list[str], prunus: Prunus, tmp_path: Path) -> None:
    ran = prunus(*words)
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("prunus: ")


def test_other_commands_refuse_in_the_same_way(refused: Any, quick: list[Any], tmp_path: Path) -> None:
    refused(["describe", tmp_path / "nowhere"], "no such file or folder")
    refused(["evaluate", tmp_path / "nowhere"], "no such file or folder")
    refused(["evaluate", quick[1], "--corpus", "nowhere"], "is unknown")
    refused(["evaluate", quick[1], "--length", "1"], "expected at least 2 tokens")
    refused(["list", "solver"], "Did you mean 'solvers'?")
    refused(["recipe", "--sparsity", "70"], "Did you mean 0.7?")


def test_without_quiet_the_one_line_comes_last(prunus: Prunus, quick: list[Any], text_file: Path) -> None:
    text_file.write_text("short")
    lines = prunus(*quick).err.splitlines()
    assert [line.startswith("prunus: ") for line in lines] == [False] * (len(lines) - 1) + [True]


def test_in_a_process_of_its_own(quick: list[Any], tmp_path: Path) -> None:
    """Without the shape checks of these tests, and with a real exit code."""
    words = [*map(str, quick), "--activations", "tape", "--quiet"]
    ran = subprocess.run([sys.executable, "-m", "prunus", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "prunus: placement.activations = 'tape': expected 'memory', 'device' or 'disk'.\n"
    assert ran.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["prune", "allocate", "search"])
def test_shares_from_a_file_that_is_not_there_or_of_another_model(refused: Any, quick: list[Any], tmp_path: Path, command: str) -> None:
    words = [command, *quick[1 : None if command == "prune" else -2], "--allocation"]
    refused([*words, "file,path=nowhere.json"], "nowhere.json: cannot be read")
    (tmp_path / "other.json").write_text('{"transformer.h.0.attn.c_attn": 0.5}')
    refused([*words, f"file,path={tmp_path / 'other.json'}"], "says nothing about model.layers.0.self_attn.q_proj and 13 other sites")


@pytest.mark.parametrize(("flags", "reasons"), [
    (["--evaluations", "0"], ["evaluations = 0"]),
    (["--search", "evolution,offspring=0"], ["expected one more share than survivors, the last 1, and at least one offspring"]),
    (["--search", "evolve"], ["'evolve' is unknown", "Did you mean 'evolution'?"]),
    (["--granularity", "2:4"], ["fixes the sparsity of every site: there is nothing to search"]),
    (["--search-text", "builtin", "--calibration", "builtin"], ["of the search text", "Name another corpus or split"]),
    (["--solver", "wanda", "--search", "dynamic"], ["'dynamic' needs the error of every site", "Choose one that needs a Gram matrix"]),
])
def test_a_search_that_makes_no_sense(refused: Any, quick: list[Any], flags: list[str], reasons: list[str]) -> None:
    refused(["search", *quick[1:-2], *flags], *reasons)


def test_levels_that_do_not_hold_the_budget_between_them(refused: Any, prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    flags = ["--search", "local", "--calibration", quick[5], "--length", "32", "--evaluate", "none"]
    recipe = prunus("recipe", *flags).out.replace("levels = []", "levels = [0.6, 0.7]")
    (tmp_path / "r.toml").write_text(recipe)
    refused(["search", quick[1], "--out", tmp_path / "out", "--recipe", tmp_path / "r.toml"], "expected levels on both sides",
            "sparsity 0.5")


def test_a_level_store_of_another_model(refused: Any, prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    flags = ["--search", "local", "--evaluations", "2", "--solver", "wanda", "--calibration", quick[5], "--samples", "4", "--length", "32"]
    recipe = prunus("recipe", *flags).out.replace('store = ""', f'store = "{tmp_path / "levels"}"')
    (tmp_path / "r.toml").write_text(recipe)
    words = ["search", quick[1], "--recipe", tmp_path / "r.toml"]
    assert prunus(*words, "--out", tmp_path / "one").code == 0
    tensors = load_file(quick[1] / "model.safetensors")
    save_file({name: value * 2 for name, value in tensors.items()}, quick[1] / "model.safetensors", metadata={"format": "pt"})
    refused([*words, "--out", tmp_path / "two"], "holds levels of another run (identity differs)")


@pytest.mark.parametrize(("flags", "words"), [
    (["--format", "onnx"], "--format: 'onnx' is unknown. Known: deci, gguf"),
    (["--format", "gguf,dtype=Q2"], "--format.dtype = 'Q2': expected one of"),
    (["--format", "deci,shards=2"], "--format.shards: unknown key"), (["--format", "gguf"], "exists. Name another file"),
    (["--format", "padded"], "is a file, expected a folder"),
])
def test_an_export_that_cannot_be(flags: list[str], words: str, refused: Any, checkpoint: Any, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    refused(["export", checkpoint(), "--out", tmp_path / "there", *flags], words)


@pytest.mark.parametrize(("flags", "reasons"), [
    (["--sites", "channel", "--sparsity", "0.999"], ["no attention would be left", "--skip 'model.layers.0.self_attn*'"]),
    (["--sites", "channel", "--multiple", "48"], ["multiple = 48: model.layers.0.mlp.channels has 48 channels", "smaller multiple"]),
    (["--sites", "channel", "--multiple", "0"], ["multiple = 0: expected at least 1"]),
    (["--multiple", "8"], ["multiple = 8: expected at least 1, and more only where channels go"]),
    (["--sites", "sublayer", "--sparsity", "0.9"], ["sparsity 0.9 leaves no attention", "at most 0.800 of the weights"]),
    (["--sites", "sublayer", "--search", "progressive,protected=1"], ["protected = 1, 0.0% of the weights may go", "wants 50.0%"]),
    (["--sites", "sublayer", "--search", "progressive,only=attention"], ["only = 'attention'", "40.0% of the weights may go"]),
    (["--metrics", "sped"], ["'sped' is unknown", "Did you mean 'speed'?"]), (["--metrics", "speed,answer=0"], ["answer = 0"]),
], ids=lambda value: " ".join(value) if value[0].startswith("-") else "")
def test_a_structure_that_cannot_go(flags: list[str], reasons: list[str], refused: Any, quick: list[Any]) -> None:
    """Where work had begun, nothing of it is kept: the same recipe would come to the same end."""
    refused([*quick, *flags], *reasons)


def test_a_family_without_such_sites(refused: Any, quick: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(model: Any) -> Anatomy:
        found = describe(model)
        return replace(found, blocks=tuple(replace(block, sites=tuple(site for site in block.sites if isinstance(site, LinearSite)))
                                           for block in found.blocks))

    monkeypatch.setattr("prunus.pipeline.describe", bare)
    refused([*quick, "--sites", "channel"], "no channel site is described for this model's family")


def truncated(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.999])
@pytest.mark.parametrize("form", ["huggingface", "sparse", "gguf"])
def test_an_export_that_was_cut_off(form: str, share: float, refused: Any, prunus: Prunus, tmp_path: Path) -> None:
    from ..pipeline.test_gguf import SHAPE, tokenizer

    tiny_model(**SHAPE).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    place = tmp_path / ("out.gguf" if form == "gguf" else "out")
    assert prunus("export", tmp_path / "model", "--format", form, "--out", place).code == 0
    file = place if form == "gguf" else next(place.glob("*.safetensors"))
    truncated(file, int(share * file.stat().st_size))
    refused(["evaluate", place, "--length", "32"], str(file), "damaged or truncated")


def test_a_tokenizer_that_is_damaged_or_not_there(refused: Any, quick: list[Any]) -> None:
    truncated(quick[1] / "tokenizer.json", 100)
    refused(["evaluate", quick[1], "--length", "32"], "tokenizer.json: a damaged tokenizer")
    for file in quick[1].glob("tokenizer*"):
        file.unlink()
    refused(["evaluate", quick[1], "--length", "32"], "text needs a tokenizer")
    refused(quick, "no tokenizer: text is read")


def test_a_model_that_a_format_cannot_say_with_formats_that_can(refused: Any, checkpoint: Any, tmp_path: Path) -> None:
    for form in ("gguf", "deci"):
        refused(["export", checkpoint("gpt2"), "--format", form, "--out", tmp_path / "out"],
                "not 'gpt2'. Use format 'huggingface' or 'padded'")


def test_an_export_that_would_be_larger(refused: Any, tmp_path: Path) -> None:
    """Random bits cannot be compressed."""
    model = tiny_model(dtype=torch.float16, hidden_size=64)
    for index, parameter in enumerate(model.parameters()):
        bits = torch.randint(0, 256, (2 * parameter.numel(),), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        parameter.data = bits.view(torch.float16).view(parameter.shape)
    model.save_pretrained(tmp_path / "model")
    refused(["export", tmp_path / "model", "--format", "sparse", "--out", tmp_path / "out"], "too few weights are 0")


def test_texts_that_analyse_cannot_compare(refused: Any, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    words = ["analyse", quick[1], "--out", tmp_path / "seen", "--calibration", text_file, "--length", 32, "--quiet"]
    refused([*words, "--calibration", text_file], "is named twice")
    refused([*words, "--text", "self", "--text", f"{text_file},length=16"], "sequences of 32, 16 tokens")
    refused([*words, "--share", "20"], "share = 20")
