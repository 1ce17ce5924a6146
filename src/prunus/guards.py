"""What makes the figures of a report worth less than they look, found and said."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .achieved import Counted
from .allocation import reach
from .budget import Allocation
from .calibration.corpus import Text, check_apart
from .calibration.reported import beginning_of
from .comparison import p_value
from .evaluation import Measurement
from .grams import Looked, Overlap
from .granularity import Granularity
from .recipe import Recipe, Stage
from .result import SiteRecord
from .significance import LEVEL, holm
from .sites import ChannelSite, Site, SublayerSite

__all__ = ["SHARED", "excess", "flags", "overlaps", "remarks", "scarcity", "shortfall"]

SHARED = 0.02  # of the runs of a text, from which on a text is said to have been seen; two splits of PTB share 0.016 of each other
_PER_INPUT = 8  # tokens, for what the dense model would give to be guessed from as many inputs
_LEARNED = 0.7  # of the divergence, below which a rise of the loss is less than pruning alone makes it
_CALIBRATED = 0.05  # calibration error of a dense model up to which its losses say what they should
_KNOWS = 100.0  # perplexity of a dense model up to which it knows a text well enough to be right about what it does not know
_HACKED = "May be reward-hacked:"


def overlaps(recipe: Recipe, calibrated: bool) -> tuple[Overlap, ...]:
    """How much of every later text stands in every earlier one: calibration, search, report; of report text as much as is measured, of
    tasks the questions that are asked, with their right answers.

    Raises CorpusError where more than a hundredth of the lines of one text stand in the other; questions are only counted. Text that the
    model writes itself is not compared.
    """
    pruned_on = [("calibration", recipe.calibration.text())] if calibrated else []
    searched_on = [("search", stage.search.reads()) for stage in recipe.stage if stage.search]
    reported_on: list[tuple[Text | None, Text]] = [
        (metric.text(), getattr(metric, "beginning", metric.text)()) for metric in recipe.metrics if hasattr(metric, "text")]
    several: list[Any] = [metric for metric in recipe.metrics if hasattr(metric, "texts")]
    reported_on += [(text, beginning_of(text, metric.tokens)) for metric in several for text in metric.texts()]
    if any(one for _, one in pruned_on + searched_on):
        reported_on += [(None, text) for metric in recipe.metrics if hasattr(metric, "questions") for text in metric.questions()]
    looked = Looked()
    found: dict[tuple[str, str], Overlap] = {}

    def compare(ours: str, one: Text | None, theirs: str, other: Text | None, seen: Text | None) -> None:
        check_apart(ours, one, theirs, other)
        if one is not None and seen is not None:
            names = one.called(ours), seen.called(theirs)
            found[names] = looked.overlap(one, seen, names)

    for ours, one in pruned_on + searched_on:
        for theirs, other in searched_on if ours == "calibration" else ():
            compare(ours, one, theirs, other, other)
        for other, seen in reported_on:
            compare(ours, one, "report", other, seen)
    return tuple(found.values())


def flags(before: Sequence[Measurement], after: Sequence[Measurement], found: Sequence[Overlap]) -> tuple[str, ...]:
    """Why the report's figures may not be what they look like; a reader is to see these first."""
    lines = [f"{_HACKED} {overlap}. What is measured on text that was seen says little of other text."
             for overlap in found if overlap.text.startswith("report") and overlap.share >= SHARED]
    beating = {pair[0].label: (pair, p) for pair, p in _beating(before, after) if p < LEVEL}
    for pair, p in beating.values():
        lines.append(f"{_HACKED} {_better(*pair)} (p = {p:.2g}). Pruning alone takes quality away: the model has learned from text "
                     "like this, or was chosen on it, and on other text it may be worse.")
    for text, rise, moved, p in _learned(before, after):
        if f"{text} perplexity" not in beating:
            lines.append(f"{_HACKED} on {text} the loss changed by {rise:+.3f} nats per token, and predictions moved by {moved:.3f} "
                         f"(divergence from dense; p = {p:.2g}). Pruning alone makes the two about the same: the model has learned from "
                         "text like this.")
    return tuple(lines)


def remarks(before: Sequence[Measurement], after: Sequence[Measurement], found: Sequence[Overlap]) -> tuple[str, ...]:
    """What a reader should know beside."""
    lines = [f"{overlap}." for overlap in found if not overlap.text.startswith("report") and overlap.share >= SHARED]
    lines += [f"{_better(*pair)}, which may be chance (p = {p:.2g})." for pair, p in _beating(before, after) if p >= LEVEL]
    return tuple(lines)


def _beating(before: Sequence[Measurement], after: Sequence[Measurement]) -> list[tuple[tuple[Measurement, Measurement], float]]:
    """Where the pruned model is better than the dense one, and the p-value of no difference, corrected for the number of such metrics."""
    pairs = [(dense, pruned) for dense, pruned in zip(before, after, strict=True) if dense.kind != "rounds"
             and not dense.draws and all(map(math.isfinite, (*dense.parts, *pruned.parts))) and dense.value != pruned.value
             and (pruned.value < dense.value) == (dense.better == "lower")]
    corrected = holm({place: p_value(dense.parts, pruned.parts) for place, (dense, pruned) in enumerate(pairs)})
    return [(pair, corrected[place]) for place, pair in enumerate(pairs)]


def _learned(before: Sequence[Measurement], after: Sequence[Measurement]) -> list[tuple[str, float, float, float]]:
    """Texts on which a model has lost less than it should: by how much its loss rose, how far its predictions moved, and the p-value.

    Where the dense model's probabilities are right, the loss on a text that neither model has seen rises by KL(dense || model) on
    average; what a model has learned from the text by itself makes the rise smaller, and the divergence hardly.
    """
    known = {dense.label: (dense, pruned) for dense, pruned in zip(before, after, strict=True)}
    found: dict[str, tuple[float, float, float]] = {}
    for label, (dense, pruned) in known.items():
        text = label.removesuffix(" perplexity")
        moved, sure = (known.get(f"{text} {number}") for number in ("divergence from dense", "calibration error"))
        if moved is None or sure is None or not all(map(math.isfinite, (*dense.parts, *pruned.parts, *moved[1].parts))):
            continue
        rises = [mine - theirs for mine, theirs in zip(pruned.parts, dense.parts, strict=True)]
        rise = statistics.fmean(rises)
        if rise < _LEARNED * moved[1].value and sure[0].value <= _CALIBRATED and dense.value <= _KNOWS:
            found[text] = rise, moved[1].value, p_value(moved[1].parts, rises)
    corrected = holm({text: p for text, (_, _, p) in found.items()})
    return [(text, rise, moved, corrected[text]) for text, (rise, moved, _) in found.items() if corrected[text] < LEVEL]


def _better(dense: Measurement, pruned: Measurement) -> str:
    return f"{dense.label} is better than the dense model's: {pruned.value:.4g} against {dense.value:.4g}"


def scarcity(recipe: Recipe, chosen: Sequence[Sequence[Site]], tokens: Tensor) -> tuple[str, ...]:
    """Where calibration has less text than was asked for, or than the dense model's outputs as the goal need."""
    notes = []
    if 0 < len(tokens) < (asked := recipe.calibration.samples + recipe.calibration.written):
        unwritten = ", or the model writes none" if recipe.calibration.written else ""
        notes.append(f"Calibration had {len(tokens)} of the {asked} sequences asked for: the text gave no more{unwritten}.")
    widths = [site.count * site.width if isinstance(site, ChannelSite) else site.shape[1]
              for stage, sites in zip(recipe.stage, chosen, strict=True) if stage.target.asymmetry
              for site in sites if not isinstance(site, SublayerSite)]
    if widths and tokens.numel() < _PER_INPUT * max(widths):
        notes.append(f"{tokens.numel()} calibration tokens, and matrices with up to {max(widths)} inputs: too few to tell well what the "
                     f"dense model would give. Damping keeps the goal near the weights; use {_PER_INPUT} tokens for an input, or less "
                     "asymmetry.")
    return tuple(notes)


def excess(index: int, stage: Stage, sites: Sequence[Site], shares: Allocation, granularity: Granularity) -> tuple[str, ...]:
    """Where much more went than was asked of a stage, as what goes whole comes in steps."""
    gone = 1 - stage.budget.remaining(sites, {site.name: reach(site, shares[site.name], granularity) for site in sites})
    if gone < stage.budget.sparsity + 0.02:
        return ()
    return (f"Of the weights of stage {index + 1}'s sites {gone:.1%} went, where {stage.budget.sparsity:.1%} were to go: "
            "what goes as a whole comes in steps, and the next smaller one was too small.",)


def shortfall(records: Sequence[SiteRecord], counted: Sequence[Counted]) -> tuple[str, ...]:
    """Matrices in whose weights less is zero or gone than was asked of them: something has filled them after they were pruned."""
    asked: Mapping[str, float] = {record.site: record.asked for record in records}
    short = [matrix for matrix in counted if matrix.sparsity < asked.get(matrix.name, 0.0) - 1e-3]
    if not short:
        return ()
    worst = max(short, key=lambda matrix: asked[matrix.name] - matrix.sparsity)
    return (f"In {len(short)} of {len(counted)} matrices less is zero or gone than was asked of them, most of all in {worst.name}: "
            f"{worst.sparsity:.2%} counted, {asked[worst.name]:.2%} asked.",)
