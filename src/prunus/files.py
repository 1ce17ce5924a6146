"""Files that are there as a whole or not at all."""

import os
from pathlib import Path

__all__ = ["put_in_place"]


def put_in_place(draft: Path, target: Path) -> None:
    """Give a finished file its name, once it is safely on disk: a crash leaves the whole file or none."""
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.replace(target)
