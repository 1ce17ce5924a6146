"""A comparison from beginning to end."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..environment import machine, peak_bytes
from ..files import check_place, put_texts
from ..generations import prompts_of
from ..grams import Looked
from ..known import Known, checked
from .kept import Kept
from .looking import Looking, short_names
from .made import seen_of
from .measuring import Measuring, Watch, pieces_of
from .spending import spending
from .values import Asked, Compared, Contender
from .verdicts import flags_of, notes_of, rows_of

__all__ = ["KEPT", "compare", "write"]

KEPT = "measured"  # the folder of measurements, in that of the report


def compare(sources: Sequence[str], asked: Asked, out: Path, *, known: Sequence[Known] = (), trust: bool = False,
            watch: Watch = lambda phase, done, total: None) -> Compared:
    """The first source is the dense model, the others are compared with it. Measurements are kept in a folder in `out`, by a hash of
    the weights and of all that is asked, and not made again.

    Raises LoadError, CorpusError and RecipeError before anything is measured; ComparisonError where models are no pair, ExportError
    where `out` is in the way.
    """
    short_names(sources)
    check_place(out, "" if (out / KEPT).is_dir() else "exists, and is not of an earlier comparison. Choose another folder.")
    pieces, prompts = pieces_of(asked), prompts_of(asked.prompts)
    kept = Kept(out / KEPT)
    looking = Looking(kept, asked.device, trust, asked.dtype)
    looked = looking.all(sources, watch)
    dtype, measuring = looking.dtype, Measuring(asked, pieces, kept, trust, watch)
    models = measuring.all(looked, dtype)
    rows, tested = spending(lambda: rows_of(models, _of_speed(asked, dtype)), asked.device)
    texts, between = [text for piece in pieces for text in piece.texts], Looked()
    seen, searched = spending(lambda: {model.name: seen_of(model.source, texts, between) for model in models[1:]}, asked.device)
    overlaps = {name: found for name, (found, _) in seen.items()}
    sanity = checked(models[0].measured, known)
    remarks = [f"{name}: {remark}" for name, (_, lines) in seen.items() for remark in lines]
    environment = {"dtype": dtype, "device": asked.device, **machine(), "peak resident memory": f"{peak_bytes() / 2**20:.0f} MiB"}
    notes = (*map(str, sanity), *notes_of(models), *remarks)
    return Compared(asked, prompts, models, rows, flags_of(models, overlaps), notes, overlaps, sanity, environment,
                    _command(models, asked, out, trust), {**measuring.spent, "intervals and tests": tested, "texts seen before": searched})


def _of_speed(asked: Asked, dtype: str) -> str:
    return (f"PyTorch, {asked.read} random tokens read, {asked.write} written one by one with the cache, one sequence, median of "
            f"{asked.rounds} rounds after one that warms up, all models in turn, {dtype}, {asked.device}, {machine()['machine']}")


def _command(models: Sequence[Contender], asked: Asked, out: Path, trust: bool) -> str:
    """The command that asks this, with what is not the default."""
    words = ["prunus", "compare", *(model.source for model in models)]
    usual = Asked(tasks=("any",))
    words += ["--corpora", ",".join(asked.corpora) or "none", *(["--tasks", ",".join(asked.tasks)] if asked.tasks else [])]
    for name in ("limit", "shots", "split", "length", "tokens", "answer", "rounds", "read", "write", "device", "dtype"):
        value = getattr(asked, name)
        words += [f"--{name}", str(value)] if value != getattr(usual, name) else []
    for prompt in (asked.prompts or ("none",)) if asked.prompts != usual.prompts else ():
        words += ["--prompt", prompt]
    return shlex.join([*words, *(["--trust-remote-code"] if trust else []), "--out", str(out)])


def write(compared: Compared, out: Path) -> tuple[Path, ...]:
    """The report in its three forms, and a model card for every pruned model. Raises ExportError."""
    from .card import cards
    from .content import compared_page
    from .data import as_json
    from .markdown import as_markdown
    from .web import as_html

    page = compared_page(compared)
    files = {"report.html": as_html(page), "report.md": as_markdown(page), "report.json": as_json(compared), **cards(compared)}
    return put_texts(out, files)
