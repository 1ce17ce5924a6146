"""The flags that `prune` and `recipe` share, and the recipe that they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..recipe import Recipe

__all__ = [
    "Allocation", "Baselines", "CalibrationText", "Device", "Dtype", "Effort", "EvaluationLength", "EvaluationText", "Evaluations",
    "Granularity", "LatencyBatch", "Length", "Metrics", "Model", "Multiple", "Objective", "Objectives", "Order", "Out", "Overwrite",
    "Quiet", "RecipeFile", "Recovery", "Repaired", "Resume", "Samples", "Search", "SearchText", "Searcher", "Seed", "Sites", "Skip",
    "Solver", "Space", "Sparsity", "Target", "Task", "Train", "TrustRemoteCode", "front_settings", "given", "named", "of_corpus",
    "recipe_of", "said_of", "words",
]

Model = Annotated[str, typer.Argument(help="A folder, a hub id, a .gguf file, or package:NAME.", show_default=False)]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe (TOML) instead of the flags below.")]
Sites = Annotated[str | None, typer.Option(
    help="What is pruned: linear (weights), channel (MLP channels and head groups), or sublayer (whole attentions and MLPs). "
         "[default: linear]")]
Sparsity = Annotated[float | None, typer.Option(help="Fraction of the weights removed, in [0, 1). [default: 0.5]")]
Granularity = Annotated[str | None, typer.Option(
    help="Shape of the zeros: unstructured[:row|:matrix], n:m (2:4 keeps 2 of 4; 2:4,permute=true reorders inputs first), "
         "tile:RxC, columns[:W].")]
Solver = Annotated[str | None, typer.Option(
    help="alps, swaps, sparsegpt, sparsellm, ladmm, refit, subset, mask, or a criterion (wanda, magnitude, …); settings after commas: "
         "sparsegpt,damping=0.1. [default: alps; of channels sparsegpt]")]
Effort = Annotated[str | None, typer.Option(
    help="Compose what other flags leave open: fast, balanced, or best; `prunus recipe --effort best` prints what that is. "
         "[default: none]")]
Allocation = Annotated[str | None, typer.Option(
    help="How much each site gives: uniform, owl, dlp, erk, reconstruction, sensitivity, fisher, absorption, or file; of channels "
         "ranking too; of sublayers influence or contiguous; settings after commas. [default: uniform; of sublayers influence]")]
Search = Annotated[str | None, typer.Option(
    help="Improve that by a search: reinforce, evolution, local, dynamic, cmaes, ppo, ddpg, sac, random; of channels masks too; of "
         "sublayers progressive, regression or bernoulli; settings after commas. [default: none; of sublayers progressive]")]
Evaluations = Annotated[float | None, typer.Option(help="Looks at the search text that a search may take. [default: 100]")]
SearchText = Annotated[str | None, typer.Option(
    "--search-text", help="Search text: a corpus or a file, or self, which the model writes; settings after commas: "
                          "c4,samples=32,length=256. [default: self,samples=16]")]
Objective = Annotated[str | None, typer.Option(
    help="What candidates are valued by: divergence from the dense model, perplexity of the search text, or accuracy on the "
         "multiple-choice examples of a JSONL file that --search-text names. [default: divergence]")]
Repaired = Annotated[int | None, typer.Option(
    help="Where sublayers go: calibration sequences that every candidate of a search is repaired on before it is looked at, as "
         "--recovery says. [default: 0, candidates are looked at as cut]")]
Multiple = Annotated[int | None, typer.Option(
    help="Where channels go, a multiple of this stays in every MLP (32 for Q8_0, 64 or 128 for GPUs). [default: 1]")]
Recovery = Annotated[str | None, typer.Option(
    help="Repair what is kept: reconstruct, patch, distill, or none; settings after commas. [default: patch where sublayers go, else "
         "none]")]
Target = Annotated[str | None, typer.Option(
    help="What matrices are fitted to: asymmetry=0.5 (half-way to the dense model's outputs), fisher=true (tokens by what they cost), "
         "true_sequential=false (a block's matrices as they were); several with commas. [default: their own outputs on the pruned model's "
         "inputs]")]
Skip = Annotated[list[str] | None, typer.Option(help="Site names to leave alone, as a glob pattern; may be repeated.")]
CalibrationText = Annotated[str | None, typer.Option(
    "--calibration", help="Calibration text: builtin, c4, wikitext2, ptb, self, or a .txt or .jsonl file. [default: builtin]")]
Samples = Annotated[int | None, typer.Option(help="Calibration sequences. [default: 128]")]
Written = Annotated[int | None, typer.Option(
    help="Sequences beside those of the calibration text that the model writes itself. [default: 0; where matrices are pruned with "
         "--effort balanced a sixth as many as --samples, with best as many]")]
Length = Annotated[int | None, typer.Option(help="Tokens per calibration (and search) sequence. [default: 512]")]
Space = Annotated[str | None, typer.Option(
    help="Search sub-networks by several objectives: small, medium, layer, sublayer, large, or mixed (sparse too); settings after commas: "
         "medium,steps=8.")]
Objectives = Annotated[str | None, typer.Option(
    help="With --space: error (of --task), loss or divergence; and params, flops, latency or memory, as shares of the dense model's; two "
         "or more. [default: error,params with --task, else divergence,params]")]
Searcher = Annotated[str | None, typer.Option(
    help="With --space, which sub-networks are looked at: nsga2, ehvi, morea, exchange, local, lsbo, rsbo, stratified or random; with "
         "--train asha too; settings after commas. [default: nsga2]")]
Train = Annotated[str | None, typer.Option(
    help="With --space, train every sub-network by itself, from the model's weights, before it is valued: epochs=3,batch=16,rate=1e-4; on "
         "the training split of the task, or on calibration text. [default: none is trained]")]
Task = Annotated[str | None, typer.Option(
    help="A labelled corpus: glue_sst2, or a .jsonl file; settings after commas: glue_sst2,rows=4000,seed=1. Trained on its training "
         "split, searched on its validation split, and reported on its test split.")]
Order = Annotated[str | None, typer.Option(
    help="Which channels of a branch stay first: none (as they are), fisher, or a criterion (magnitude, wanda, taylor, …). [default: none; "
         "of a trained super-network its own]")]
Refit = Annotated[bool | None, typer.Option(
    "--refit", help="With --space, fit what reads channels to those that stay, by the training split of the task or by calibration text, "
                    "in every sub-network that is looked at. [default: its weights are the model's]")]
Baselines = Annotated[str | None, typer.Option(
    help="With --space, what is valued beside the front: layerdrop, heads, rfp, or a criterion (magnitude, wanda, …) by which channels go; "
         "several with commas. [default: none]")]
LatencyBatch = Annotated[int | None, typer.Option("--batch", help="With --space: sequences that latency is measured with. [default: 1]")]
EvaluationText = Annotated[str | None, typer.Option(
    "--evaluate", help="Text for the perplexity before and after; none for no measurement. [default: builtin]")]
EvaluationLength = Annotated[int | None, typer.Option("--evaluate-length", help="Tokens per window of that text. [default: 512]")]
Metrics = Annotated[list[str] | None, typer.Option(
    help="What is measured before and after beside that perplexity: tasks, fidelity, speed, or another perplexity; settings after commas: "
         "tasks,names=['piqa'],limit=200; may be repeated.")]
Seed = Annotated[int | None, typer.Option(help="Chooses the calibration sequences. [default: 0]")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist or be empty.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


_FLAGS = ("sites", "sparsity", "granularity", "effort", "solver", "allocation", "search", "evaluations", "search_text", "objective",
          "repaired", "recovery", "multiple", "target", "skip", "calibration", "samples", "written", "length", "evaluate",
          "evaluate_length", "metrics", "seed")
_SUITED = {  # to kinds of sites, where flags do not say otherwise
    "channel": {"solver": "sparsegpt"},
    "sublayer": {"allocation": "influence", "search": "progressive", "recovery": "patch"},
}


_OF_FRONTS = ("objectives", "searcher", "task", "order", "refit", "batch", "baselines", "train")
_OF_SHARES = ("recipe", "sites", "sparsity", "multiple", "granularity", "solver", "allocation", "search", "objective", "repaired", "skip")


def front_settings(values: dict[str, Any]) -> dict[str, Any] | None:
    """The flags of a search for a front as plain data; None where none is asked for. Raises RecipeError where flags do not go together."""
    said = said_of(values)
    _check_of_front(said)
    if "space" not in said:
        return None
    text = {flag: said[flag] for flag in ("samples", "length") if flag in said}
    quality = "error" if "task" in said else "divergence"
    settings: dict[str, Any] = {"space": named(said["space"], "--space"),
                                "objectives": [name.strip() for name in said.get("objectives", f"{quality},params").split(",")],
                                "calibration": {"corpus": said.get("calibration", "builtin"), **text}}
    settings |= {flag: named(said[flag], f"--{flag}") for flag in ("searcher",) if flag in said}
    settings |= {flag: said[flag] for flag in ("order", "refit", "batch", "seed") if flag in said}
    if "baselines" in said:
        settings["baselines"] = [name.strip() for name in said["baselines"].split(",")]
    if "task" in said:
        settings["task"] = of_corpus(said["task"], "--task")
    if {"search_text", "length"} & set(said):
        settings["text"] = _search_text(said)
    if "train" in said:
        seed = {"seed": said.get("seed", 0)}
        settings["training"] = seed | _settings(said["train"].split(","), f"--train {said['train']}", "")
    if "evaluations" in said:
        settings["evaluations"] = int(said["evaluations"])
    return settings


def _check_of_front(said: dict[str, Any]) -> None:
    """Raises RecipeError where flags say nothing, or do not go together."""
    from ..errors import RecipeError

    if "space" not in said:
        if wrong := [key for key in _OF_FRONTS if key in said]:
            raise RecipeError(f"--{wrong[0]} says nothing without --space.")
        return
    if wrong := [key for key in _OF_SHARES if key in said]:
        raise RecipeError(f"--{wrong[0]} does not go with --space, whose sub-networks have any size.")
    if wrong := [key for key in ("calibration", "samples", "length", "search_text") if key in said and "task" in said]:
        raise RecipeError(f"--{wrong[0].replace('_', '-')} says nothing with --task, whose examples are read instead.")
    if "batch" in said and "latency" not in said.get("objectives", ""):
        raise RecipeError("--batch says nothing without the objective latency.")
    if not float(said.get("evaluations", 1)).is_integer():
        raise RecipeError(f"--evaluations {said['evaluations']}: expected a whole number of sub-networks.")


def words(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def of_corpus(text: str, where: str) -> dict[str, Any]:
    """`corpus,key=value,…` as a table; a file may have commas in its name."""
    if not text:
        from ..errors import RecipeError

        raise RecipeError(f"{where} '': expected a corpus.")
    table = {"name": text} if Path(text).is_file() else named(text, where)
    return {"corpus": table.pop("name"), **table}


def said_of(values: dict[str, Any]) -> dict[str, Any]:
    """Of arguments, those that were given."""
    return {key: value for key, value in values.items() if value is not None}


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those that say something about a recipe."""
    return {key: values[key] for key in _FLAGS if key in values}


def recipe_of(recipe: Path | None, flags: dict[str, Any]) -> "Recipe":
    """The recipe of a file, or of flags; the two do not mix. Raises RecipeError."""
    from ..errors import RecipeError
    from ..recipe import Recipe, build

    given = {key: value for key, value in flags.items() if value is not None and value != []}
    if recipe is not None:
        if given:
            raise RecipeError(f"--{next(iter(given)).replace('_', '-')} does not go with --recipe: write it into the recipe.")
        return Recipe.load(recipe)
    built: Recipe = build(Recipe, _data(given), "recipe")
    return built


def _data(given: dict[str, Any]) -> dict[str, Any]:
    """Flags as the plain data of a recipe with one stage."""
    from ..budget import limit_of
    from ..effort import preset
    from ..errors import RecipeError
    from ..granularity import NM
    from ..recipe import parse_granularity

    kind = given.get("sites", "linear")
    granularity = parse_granularity(given.get("granularity", "unstructured"), "--granularity")
    fixed = 1 - granularity.n / granularity.m if isinstance(granularity, NM) else 0.5
    stage: dict[str, Any] = {"sites": [kind], "budget": {"limit": limit_of(given.get("sparsity", fixed), "--sparsity")},
                             "granularity": str(granularity)}
    suited = _SUITED.get(kind, {})
    if "effort" in given:
        stage["effort"] = given["effort"]
        composed = preset(given["effort"], kind, granularity)
        suited = {"search": composed["search"]["strategy"]} if "search" in composed else {}
    given = {**suited, **given}
    stage |= {key: given[key] for key in ("skip", "multiple") if key in given}
    stage |= {key: named(given[key], f"--{key}") for key in ("solver", "allocation") if key in given}
    if "search" in given:
        stage["search"] = _search(given) if given["search"] != "none" else None
    if "recovery" in given:
        stage["recovery"] = named(given["recovery"], "--recovery") if given["recovery"] != "none" else None
    if "target" in given:
        stage["target"] = _settings(given["target"].split(","), f"--target {given['target']}", "")
    if not stage.get("search") and (said := [key for key in ("evaluations", "search_text", "objective", "repaired") if key in given]):
        raise RecipeError(f"--{said[0].replace('_', '-')} says nothing without --search.")
    settings = {"calibration": "corpus", "samples": "samples", "written": "written", "length": "length"}
    text = {key: given[flag] for flag, key in settings.items() if flag in given}
    data: dict[str, Any] = {"stage": [stage], "calibration": text, "seed": given.get("seed", 0)}
    evaluation = given.get("evaluate", "builtin")
    window = {"length": given["evaluate_length"]} if "evaluate_length" in given else {}
    first = [] if evaluation == "none" else [{"name": "perplexity", "corpus": evaluation, **window}]
    data["metrics"] = [*first, *(named(metric, "--metrics") for metric in given.get("metrics", []))]
    if evaluation == "none":
        data["prompts"] = []
    return data


def _search(given: dict[str, Any]) -> dict[str, Any]:
    """A search as plain data; its sequences are as long as those of the calibration."""
    asked: dict[str, Any] = {key: value for key, value in given.items() if key in ("evaluations", "objective", "repaired")}
    return {"strategy": named(given["search"], "--search"), "text": _search_text(given), **asked}


def _search_text(given: dict[str, Any]) -> dict[str, Any]:
    length = {"length": given["length"]} if "length" in given else {}
    return {"samples": 16, **length, **of_corpus(given.get("search_text", "self"), "--search-text")}


def named(text: str, where: str) -> dict[str, Any]:
    """`name,key=value,…` as a table; values are read as TOML, or as text when they are none."""
    import re

    name, *settings = re.split(r",(?![^\[]*\])(?![^{]*\})", text)  # one in a list or a table is not ours
    return {"name": name.strip(), **_settings(settings, f"{where} {text}", " after the name")}


def _settings(settings: list[str], where: str, place: str) -> dict[str, Any]:
    import tomllib

    from ..errors import RecipeError

    table: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"{where}: expected key=value{place}, found '{setting}'.")
        try:
            table[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[key.strip()] = value.strip()
    return table
