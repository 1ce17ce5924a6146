"""The level store: every site solved once at every level, on disk, so that a candidate is put together and not solved."""

import json
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor, nn

from ..calibration.placement import Placement
from ..calibration.stream import View, stream
from ..calibration.target import Target
from ..errors import ExportError, LoadError, RecipeError
from ..files import fingerprint, intact, keep_tensors, put_text, readable
from ..granularity import Granularity
from ..problem import LayerProblem, LayerSolution
from ..sites import Anatomy, LinearSite
from ..solvers import Solver, solve_all
from ..surgery.write import module_layout, read_weight

__all__ = ["LevelStore", "check_room", "planned_bytes"]

R = TypeVar("R")
_FORMAT = 1
_WORKERS = 2  # groups of matrices that are solved at a time, beside the pass that collects the next statistics


def planned_bytes(sites: Sequence[LinearSite], levels: Sequence[float], itemsize: int) -> int:
    """What a store will take on disk: for every level a bit per weight, and the weights that are kept."""
    return sum(site.size // 8 + round(site.size * (1 - level)) * itemsize for site in sites for level in levels if level > 0)


def check_room(folder: Path, planned: int) -> None:
    """Refuse, before anything is solved, a store for which the disk has no room; what is in its folder already counts. Raises
    ExportError."""
    free = shutil.disk_usage(next(home for home in (folder, *folder.absolute().parents) if home.exists())).free
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if planned > free + there:
        raise ExportError(f"{folder}: levels need {planned / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. Free some, or ask for "
                          "fewer levels.")


@dataclass(frozen=True)
class Entry:
    """One site of a store."""

    file: str
    sha256: str
    errors: tuple[float, ...]  # relative output error at every level; not a number where no Gram was collected


@dataclass(frozen=True)
class LevelStore:
    """A folder with one file per site. A file that is not what it was when it was written is never used."""

    folder: Path
    levels: tuple[float, ...]  # sparsities, ascending
    entries: dict[str, Entry]  # by site

    @classmethod
    def build(cls, folder: Path, model: nn.Module, anatomy: Anatomy, sites: Mapping[LinearSite, Granularity], tokens: Tensor,
              solver: Solver, levels: Sequence[float], identity: str,
              placement: Placement = Placement(), batch: int = 4,
              watch: Callable[[str], None] | None = None, loss: Mapping[str, Any] | None = None,
              fisher: bool = False) -> "LevelStore":
        """Solve what is missing in `folder`; statistics of all sites come from one pass through the dense model.

        `sites` are the matrices to solve, each with the shape of its zeros; `loss` is what the solver wants to know of it, by matrix;
        `fisher` weighs tokens as a Target does, of which nothing else matters where nothing is pruned yet.
        `identity` says what the answers depend on (model, text, solver); a folder that was made for another is refused.
        Raises RecipeError; CalibrationError when statistics cannot be used.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _check(folder, identity, levels)
        found = _finished(folder, len(levels))
        missing = [site for site in sites if site.name not in found]
        groups = stream(model, anatomy, missing, tokens, solver.needs, placement, batch, target=Target(fisher=fisher))
        for solved in _beside(lambda views: _solve(folder, views, solver, sites, levels, placement, loss or {}), groups):
            for name, entry in solved:
                found[name] = entry
                if watch:
                    watch(name)
        return cls(folder, tuple(levels), {site.name: found[site.name] for site in sites})

    @classmethod
    def known(cls, folder: Path, sites: Collection[str], levels: Sequence[float]) -> "LevelStore":
        """What was built in a folder before, whatever for. Raises LoadError where some of it is not there, or not what it was."""
        there, found = readable(folder / "manifest.json"), _finished(folder, len(levels))
        if not isinstance(there, dict) or there.get("levels") != list(levels) or not found.keys() >= set(sites):
            raise LoadError(f"{folder}: does not hold all matrices at the levels {', '.join(f'{level:g}' for level in levels)} as they "
                            "were solved. Search again, with --resume: they are solved anew.")
        return cls(folder, tuple(levels), {name: found[name] for name in sites})

    def weight(self, site: str, level: int, dense: Tensor) -> Tensor:
        """A site's weight at a level, in the layout and dtype of its module's own weight `dense`. Raises RecipeError."""
        if self.levels[level] == 0:
            return dense
        from safetensors import safe_open

        with safe_open(self.folder / self.entries[site].file, framework="pt") as file:
            bits, values = file.get_tensor(f"{level}.mask"), file.get_tensor(f"{level}.values")
        mask = torch.from_numpy(numpy.unpackbits(bits.numpy(), count=dense.numel())).view(torch.bool).view(dense.shape)
        return torch.zeros(dense.shape, dtype=values.dtype).masked_scatter_(mask, values).to(dense)

    @property
    def bytes(self) -> int:
        """What the store takes on disk."""
        return sum((self.folder / entry.file).stat().st_size for entry in self.entries.values())


def _beside(work: Callable[[list[View]], R], groups: Iterator[list[View]]) -> Iterator[R]:
    """What becomes of every group, in order: some are worked on in threads while the statistics of the next are collected."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        for views in groups:
            waiting.append(pool.submit(work, views))
            del views  # its statistics go when it is solved
            if len(waiting) > _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@torch.no_grad()
def _solve(folder: Path, views: Sequence[View], solver: Solver, sites: Mapping[LinearSite, Granularity], levels: Sequence[float],
           placement: Placement, loss: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    """The sites that came together, at every level but the dense one, each on disk."""
    entries = []
    problems = [LayerProblem(weight, view.stats, sites[view.site], level, view.site.name, loss.get(view.site.name))
                for view in views for weight in [read_weight(view.module).to(placement.device)] for level in levels if level > 0]
    answers = (solution for solutions in solve_all(solver, problems) for solution in solutions)
    waiting = iter(problems)
    for view in views:
        tensors: dict[str, Tensor] = {}
        errors: list[float] = []
        for index, level in enumerate(levels):
            if level == 0:
                errors.append(0.0 if solver.needs == "gram" else float("nan"))
                continue
            solution = next(answers)
            found = next(waiting).error(solution.weight)
            errors.append(float("nan") if found is None else found)
            tensors |= _packed(view.module, index, solution)
        entries.append((view.site.name, _store(folder, view.site.name, tensors, tuple(errors))))
    return entries


def _packed(module: Any, index: int, solution: LayerSolution) -> dict[str, Tensor]:
    """A bit per weight, and the weights that are kept."""
    weight, mask = (module_layout(module, value).cpu().contiguous() for value in (solution.weight, solution.mask))
    return {f"{index}.mask": torch.from_numpy(numpy.packbits(mask.numpy())), f"{index}.values": weight[mask].to(module.weight.dtype)}


def _store(folder: Path, site: str, tensors: dict[str, Tensor], errors: tuple[float, ...]) -> Entry:
    """One site's file."""
    file = folder / f"{fingerprint(site)}.safetensors"
    return Entry(file.name, keep_tensors(file, tensors, site=site, errors=errors)["sha256"], errors)


def _check(folder: Path, identity: str, levels: Sequence[float]) -> None:
    """Refuse a folder that was made for something else."""
    mark = folder / "manifest.json"
    ours = {"format": _FORMAT, "identity": identity, "levels": list(levels)}
    if mark.exists():
        theirs = readable(mark)
        if theirs != ours:
            known = theirs if isinstance(theirs, dict) else {}
            what = next(key for key in ours if known.get(key) != ours[key])
            raise RecipeError(f"{folder}: holds levels of another run ({what} differs). Name another folder, or delete this one.")
        return
    put_text(mark, json.dumps(ours))


def _finished(folder: Path, levels: int) -> dict[str, Entry]:
    """The sites whose files are what they were."""
    notes = [note for file in sorted(folder.glob("*.safetensors")) if (note := intact(file))]
    return {note["site"]: Entry(note["file"], note["sha256"], tuple(note["errors"])) for note in notes
            if len(note.get("errors", ())) == levels}
