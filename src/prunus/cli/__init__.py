"""What a person types. One file per command: parse, call one public function, print."""

from .main import run

__all__ = ["run"]
