"""The report as Markdown: the model card of a pruned model."""

import statistics
from dataclasses import dataclass

from ..evaluation import Measurement, protocols_of
from ..recipe import Stage
from ..result import Report, SiteRecord
from ..search.plan import SearchRecord

__all__ = ["Markdown"]


@dataclass(frozen=True)
class Markdown:
    """What was done, what it cost, what is left, and how to do it again."""

    title: str = "Pruned model"  # the first heading
    pictures: tuple[str, ...] = ()  # files beside the report, shown in it
    own_code: bool = False  # whether the checkpoint comes with a modelling file

    def render(self, report: Report) -> str:
        sections = [
            f"# {self.title}", *_flags(report), _summary(report), *_quality(report), *_texts(report), *_answers(report),
            _sites(report.sites),
            *map(_search, report.searches), *(f"![{name.partition('-')[0]}]({name})" for name in self.pictures), _cost(report),
            _use(report, self.own_code), _reproduce(report),
        ]
        return "\n\n".join(sections) + "\n"


def _flags(report: Report) -> list[str]:
    """Before anything else."""
    return ["\n>\n".join(f"> **{flag.partition(':')[0]}:**{flag.partition(':')[2]}" for flag in report.flags)] if report.flags else []


def _summary(report: Report) -> str:
    stages = "; then ".join(
        f"{stage.sites[0]} sites to sparsity {stage.budget.sparsity:g}{_how(stage)}{_shares(stage)}" for stage in report.recipe.stage
    )
    dense, left = report.parameters
    zero = "zero" if dense == left else "gone" if all(stage.sites != ("linear",) for stage in report.recipe.stage) else "zero or gone"
    lines = [
        f"`{report.environment['model']}` pruned with Prunus: {stages}.",
        f"**{report.sparsity:.2%}** of the weights of all block matrices are {zero}, counted in the saved weights{_counts(report)}.",
    ]
    lines += [*report.gains, *(f"Note: {note}" for note in report.notes)]
    return "\n\n".join(lines)


def _counts(report: Report) -> str:
    zeros, gone, weights = (sum(getattr(matrix, name) for matrix in report.matrices) for name in ("zeros", "gone", "weights"))
    return f": {zeros:,} zeros and {gone:,} gone of {weights:,}" if report.matrices else ""


def _how(stage: Stage) -> str:
    """In which shape, and who chose; of sublayers there is no choice beside which of them."""
    shape = f", {stage.granularity}" if stage.sites == ("linear",) else ""
    return "" if stage.sites == ("sublayer",) else f"{shape}, by {_solver(stage)}"


def _solver(stage: Stage) -> str:
    """The solver's name, and its criterion's where it has one."""
    criterion = getattr(stage.solver, "criterion", None)
    name = type(stage.solver).__name__
    return f"{name} ({type(criterion).__name__})" if criterion is not None else name


def _shares(stage: Stage) -> str:
    """Who decided how much each site gives, where it is not the same everywhere."""
    name = type(stage.allocation).__name__
    words = [] if name == "Uniform" else [f"shares by {name}"]
    if stage.search:
        words.append(f"searched by {type(stage.search.strategy).__name__}")
    return "".join(f", {word}" for word in words)


def _quality(report: Report) -> list[str]:
    if not report.before:
        return []
    pairs = list(zip(report.before, report.after, strict=True))
    parts = [("## Quality", "losses", "In brackets: 95 % bootstrap interval over windows; the ratio's is paired."),
             ("## Tasks and predictions", "means", "In brackets: 95 % interval over examples or windows, of shares of right answers "
              "Wilson's and else by bootstrap; the difference's is paired."),
             ("## Speed", "rounds", "In brackets: the least and the most of the rounds. The dense and the pruned model ran at different "
              "times, and what else the machine did then is in the ratio: `prunus speed` lets them run in turn.")]
    return [_measured(title, found, brackets) for title, kind, brackets in parts
            if (found := [pair for pair in pairs if pair[0].kind == kind])]


def _measured(title: str, pairs: list[tuple[Measurement, Measurement]], brackets: str) -> str:
    compared = "pruned - dense" if pairs[0][0].kind == "means" else "pruned / dense"
    rows = [title, "", f"| | dense | pruned | {compared} | better |", "|---|---|---|---|---|"]
    rows += [_row(before, after) for before, after in pairs]
    rows += ["", brackets, ""]
    protocols = protocols_of((before.label, before.protocol) for before, _ in pairs)
    return "\n".join([*rows, *(f"Protocol: {protocol}" for protocol in protocols)])


def _row(before: Measurement, after: Measurement) -> str:
    digits = 4 if before.kind == "means" else 2

    def cell(item: Measurement) -> str:
        low, high = item.interval
        return f"{item.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    word, value, (low, high) = after.beside(before)
    compared = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" if word == "difference" else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"| {before.label} | {cell(before)} | {cell(after)} | {compared} | {before.better} |"


def _texts(report: Report) -> list[str]:
    """What the texts have in common, as a rate."""
    if not report.overlaps:
        return []
    rows = ["## Texts", "", "| text | was seen before in | shared runs | share |", "|---|---|---|---|"]
    rows += [f"| {item.text} | {item.before} | {item.shared:,} of {item.runs:,}, of {item.words} words | {item.share:.2%} |"
             for item in report.overlaps]
    return ["\n".join(rows)]


def _answers(report: Report) -> list[str]:
    if not report.answers_before:
        return []
    parts = ["## The same prompts before and after", "", "Greedy decoding."]
    for prompt, before, after in zip(report.prompts, report.answers_before, report.answers_after, strict=True):
        parts += ["", f"**{prompt}**", "", f"- dense: {_one_line(before)}", f"- pruned: {_one_line(after)}"]
    return ["\n".join(parts)]


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def _sites(records: tuple[SiteRecord, ...]) -> str:
    """One row per kind of matrix; the full list is in report.json."""
    kinds: dict[str, list[SiteRecord]] = {}
    for record in records:
        kinds.setdefault(".".join(part for part in record.site.split(".")[-2:]), []).append(record)
    rows = ["## Sites", "", "| site | count | sparsity | relative output error: mean | largest | seconds |",
            "|---|---|---|---|---|---|"]
    for kind, group in kinds.items():
        errors = [record.error for record in group if record.error is not None]
        error = f"{statistics.fmean(errors):.4f} | {max(errors):.4f}" if errors else "not measured | "
        reached = statistics.fmean(record.reached for record in group)
        rows.append(f"| {kind} | {len(group)} | {reached:.4f} | {error} | {sum(record.seconds for record in group):.1f} |")
    return "\n".join(rows)


_OBJECTIVES = {"divergence": "divergence from the dense model", "perplexity": "log perplexity", "accuracy": "share"}


def _search(found: SearchRecord) -> str:
    """What a search was worth, on the text it saw and on text it did not."""
    return "\n".join([
        "## Search", "", f"| {_OBJECTIVES[found.objective]}, {found.unit} | search text | held-out text |", "|---|---|---|",
        f"| the allocator's answer | {found.first:.4f} | {found.held_out_first:.4f} |",
        f"| the search's answer | {found.best:.4f} | {found.held_out_best:.4f} |", "",
        f"{found.strategy}, {found.questions} questions worth {found.spent:g} looks at the search text; "
        f"{found.discarded} candidates had no value. {found.block_passes} of {found.block_passes_plain} block passes were computed, "
        f"the others were known. {'Solving all levels' if found.store_bytes else 'Preparing it'} took "
        f"{found.seconds['solving levels']:.1f} s and {found.store_bytes / 2**20:.0f} MiB, searching {found.seconds['searching']:.1f} s."])


_STAGES = {"preparing": "reading texts", "dense": "measuring the dense model", "allocating": "deciding how much each site gives",
           "searching": "searching an allocation", "reordering": "putting inputs in another order", "pruning": "calibrating and pruning",
           "solving": "of which solving", "repairing": "repairing", "pruned": "measuring the pruned model"}


def _cost(report: Report) -> str:
    """All of it: what was measured, searched and calibrated too."""
    cost = report.cost
    rows = ["## Cost", "", "| | seconds | tokens forwarded |", "|---|---|---|"]
    rows += [f"| {words} | {cost.seconds[name]:.1f} | {cost.tokens.get(name, 0):,.0f} |" for name, words in _STAGES.items()
             if name in cost.seconds]
    whole = sum(seconds for name, seconds in cost.seconds.items() if name != "solving")
    rows += [f"| in all | {whole:.1f} | {sum(cost.tokens.values()):,.0f} |", "", f"{_beside(report)}.", "",
             "; ".join(f"{name}: {value}" for name, value in report.environment.items() if name != "peak resident memory") + "."]
    return "\n".join(rows)


def _beside(report: Report) -> str:
    """What else it took: looks, memory, energy and disk."""
    cost = report.cost
    parts = [f"{cost.measurements} measurements"]
    if cost.questions:
        parts.append(f"{cost.questions} questions of searches, worth {cost.looks:g} looks at their text")
    parts.append(f"at most {cost.host_bytes / 2**20:,.0f} MiB of memory")
    if cost.device_bytes is not None:
        parts.append(f"at most {cost.device_bytes / 2**20:,.0f} MiB of the GPU's")
    joules = ", ".join(f"{value:,.0f} J {name}" for name, value in cost.joules.items())
    parts.append(f"energy of the whole machine meanwhile: {joules}" if joules else "energy: not readable here")
    if cost.files:
        parts.append(f"{sum(cost.files.values()) / 2**20:.1f} MiB of weight files")
    return "; ".join(parts)


def _use(report: Report, own_code: bool) -> str:
    kind, trust = report.environment["class"], ""
    words = []
    if own_code:
        kind, trust = "AutoModelForCausalLM" if kind.endswith("CausalLM") else "AutoModel", ", trust_remote_code=True"
        words = ["Its blocks differ in shape, which no architecture of `transformers` can say: `modeling_pruned.py` beside the weights "
                 "does, in some 100 lines.", ""]
    return "\n".join([
        "## Use", "", *words, "```python", f"from transformers import AutoTokenizer, {kind}", "",
        f'model = {kind}.from_pretrained("this/folder"{trust})',
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")', "```",
    ])


def _reproduce(report: Report) -> str:
    return "\n".join(["## Reproduce", "", "```", f"prunus prune {report.environment['model']} --recipe recipe.toml "
                      f"--dtype {report.environment['dtype']} --out out/", "```", "", "`recipe.toml`:", "", "```toml",
                      report.recipe.to_toml().strip(), "```"])
