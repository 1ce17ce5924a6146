"""What the commands that work for long have in common: a model, a folder for what is finished, and words when it ends early."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..calibration.placement import Placement
    from ..calibration.tasks import Labelled
    from ..journal import Journal
    from ..loading import Loaded
    from .progress import Screen

__all__ = ["check_head", "journal_of", "kept", "opened"]


def journal_of(source: str, out: Path, overwrite: bool, resume: bool) -> "Journal":
    """Where finished work on a model waits, beside the output folder. Raises ExportError where the output or finished work is in the way,
    or the output is the model."""
    from ..checkpoint import check_apart, check_no_search, check_target
    from ..errors import ExportError
    from ..journal import Journal

    journal = Journal(out.absolute().with_name(f"{out.absolute().name}.partial"), again=overwrite and not resume)
    for place in (out, journal.folder):
        check_apart(place, source)
    check_no_search(out)
    if not journal.ours:
        raise ExportError(f"{journal.folder}: is not unfinished work of Prunus, which would be kept there. Move it away, or choose another "
                          "output folder.")
    if resume and not (overwrite or journal.folder.exists()) and out.is_dir() and any(out.iterdir()):
        raise ExportError(f"output '{out}': is there already, and no interrupted run waits beside it to be resumed. Choose another folder "
                          "or say --overwrite.")
    check_target(out, overwrite, 0)
    if journal.folder.exists() and not (resume or overwrite):
        raise ExportError(f"{journal.folder}: holds finished work of an interrupted run. Say --resume to go on, or "
                          "--overwrite to begin again.")
    return journal


@contextmanager
def kept(journal: "Journal", out: Path, screen: "Screen") -> Iterator[None]:
    """Work that finishes and clears its journal, or else a word about what is kept. What an earlier run kept, and this one is to begin
    again, is put aside until there is something to put in its place."""
    from ..errors import CalibrationError, RecipeError, TrainingError
    from ..files import giving_way

    with giving_way([journal.folder] if journal.again else [], journal.folder.exists):
        new, begun = not journal.folder.exists(), journal.begun
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                screen.warn(f"Interrupted: nothing was written to {out}.")
            ours = new or journal.begun != begun  # not what this run was refused to go on with
            if (ours and isinstance(error, CalibrationError | TrainingError)) or (new and isinstance(error, RecipeError)):
                journal.discard()  # it would fail again at the same place
            if journal.folder.exists():
                screen.warn(f"Finished work is kept in {journal.folder}: run the same command with --resume to go on.")
            raise
        journal.discard()


def opened(source: str, placement: "Placement", dtype: str, trust: bool, screen: "Screen", labels: Sequence[str] = (),
           seed: int = 0) -> "Loaded":
    """The model, where it will compute if it fits there; with `labels`, with a head for them, drawn by `seed` where it has none."""
    screen.say(f"Loading {source}")
    from ..loading import load

    loaded: Any = load(source, dtype=dtype, trust_remote_code=trust, labels=labels, seed=seed)
    if placement.device != "cpu" and placement.fits(loaded.model):
        loaded.model.to(placement.device)
    return loaded


def check_head(loaded: "Loaded", read: "Labelled") -> None:
    """Refuse answers to a task that would be drawn at random. Raises RecipeError."""
    from ..errors import RecipeError

    if loaded.new_head:
        found = f"a head with {loaded.outputs} outputs" if loaded.outputs not in (0, len(read.labels)) else "no trained head"
        raise RecipeError(f"model '{loaded.source}': has {found}, and task '{read.test.name}' has {len(read.labels)} labels "
                          f"({', '.join(read.labels[:5])}). Train it first: prunus finetune {loaded.source} --task …")
