"""Renderers: a report as text. One file each; the file name is the name."""

from typing import Protocol, runtime_checkable

from ..result import Report

__all__ = ["Renderer"]


@runtime_checkable
class Renderer(Protocol):
    """Turns a report into text. A frozen dataclass whose fields are its settings."""

    def render(self, report: Report) -> str:
        """The whole text."""
        ...
