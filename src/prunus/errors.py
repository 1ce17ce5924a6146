"""The tree of errors: every failure a person can cause or cure is a `PrunusError` with a one-line message."""


class PrunusError(Exception):
    """Base of all; its message says where, what was found, what was expected and what to do."""


class LoadError(PrunusError):
    """A model could not be loaded: missing, damaged, refused or of an unknown architecture."""


class RecipeError(PrunusError):
    """A recipe (or the flags that stand for one) asks for something that cannot be done."""


class CorpusError(PrunusError):
    """A text is missing, empty, too short, or overlaps with another."""


class CalibrationError(PrunusError):
    """Statistics of a site cannot be used: non-finite, missing or singular beyond repair."""


class NotDefinite(CalibrationError):
    """A Gram matrix that cannot be factored."""

    def __init__(self, name: str, damping: float | None = None) -> None:
        after = "damping" if damping is None else f"damping {damping}"
        super().__init__(f"{name}: Gram matrix not positive definite after {after}. Raise `damping` or calibrate with more tokens.")


class TrainingError(PrunusError):
    """A training cannot go on: its loss is no number."""


class ComparisonError(PrunusError):
    """Two results are no pair: other examples, another protocol, or values that are no numbers."""


class ExportError(PrunusError):
    """A result cannot be written where or how it was asked for."""


class MissingExtra(PrunusError):
    """An optional dependency is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package that is not installed: pip install 'prunus[{extra}]'")


class UnknownName(PrunusError):
    """A plug-in name that no file of its folder carries."""

    def __init__(self, folder: str, name: str, known: list[str]) -> None:
        super().__init__(f"{folder}: '{name}' is unknown{nearest(name, known)} Known: {', '.join(known)}.")


def nearest(name: str, known: list[str]) -> str:
    """A sentence that suggests the known word closest to `name`, or just a full stop."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f". Did you mean '{close[0]}'?" if close else "."
