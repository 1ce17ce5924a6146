"""What a candidate is worth, computed from the first block in which it is new."""

import json
import math
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..calibration.blocks import States, enter, evaluating
from ..calibration.choices import Choices
from ..calibration.placement import Placement
from ..calibration.readout import positions_at_once
from ..errors import RecipeError
from ..files import fingerprint, intact, keep_tensors
from ..silence import silenced, sliced
from ..sites import Anatomy, ChannelSite, Site, SublayerSite
from ..subnet import subnet
from ..targets import Chosen, Following, Predicted, Target, packed, unpacked
from .channels import ChannelSpace
from .fits import Fits
from .levels import LevelStore
from .space import Candidate, Query, Space, Trial

__all__ = ["Fitness", "Objective"]

Objective = Literal["divergence", "perplexity", "accuracy"]

_Key = tuple[Candidate | str, int, int, int]  # what is valued, from which sequence to which, at one of how many positions

_EVERY = 4  # positions: a partial candidate is compared at one of so many
_SHARES = 8  # batches at least, so that a look at little of the text costs little


class Bounded:
    """The tensors used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """What is kept under `key`, which is now the one used last."""
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep a tensor, and forget those not used for longest."""
        old = self._kept.pop(key, None)
        self.bytes += value.nbytes - (0 if old is None else old.nbytes)
        self._kept[key] = value
        while self.bytes > self.limit and self._kept:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


class Fitness:
    """Values candidates; lower is better. "divergence" is KL(dense model || candidate) in nats per token, never below 0;
    "perplexity" is the logarithm of the perplexity on the text, which may be below that of the dense model; "accuracy" is the
    share of multiple-choice examples that are answered wrongly.

    Hidden states at the inputs of blocks are kept by prefix: a candidate that agrees with an earlier one up to some block
    starts there, with identical values. Weights come from a level store and are pointed to, never copied; branches that a candidate
    skips are not computed, and single channels are multiplied by 0: they need no store, unless their matrices are sparse too, of which
    those of one block at a time are held. Every value is remembered, and written to `log` at once, so that an interrupted search
    asks again at no cost.

    A partial candidate, of which an agent in its episode wants to know where it stands, is compared at every fourth position
    only: behind the kept states, the head would cost most of the look.

    With a `rehearsal` (of a recovery), a candidate is valued as it would be repaired; with `fits`, what reads single channels is fitted
    to those that stay.

    Of the dense model's distribution the `top` most probable tokens are kept and all others together count as one; the
    divergence is then a lower bound of the whole one, equal to it when `top` is the size of the vocabulary. They are kept in
    `folder`, and read back by whoever asks with the same `identity`, the hash of what they depend on.
    """

    def __init__(self, model: Any, anatomy: Anatomy, space: Space | ChannelSpace, store: LevelStore | None,
                 text: Int[Tensor, "samples length"] | Choices, *, objective: Objective = "divergence",
                 placement: Placement = Placement(), batch: int = 2, top: int = 256, memory: int = 2**30,
                 log: Path | None = None, folder: Path | None = None, identity: str = "", rehearsal: Any = None,
                 fits: Fits | None = None) -> None:
        if [site.block for site in space.sites] != sorted(site.block for site in space.sites):
            raise RecipeError("fitness: the sites of the space are not in depth order.")
        self.model, self.anatomy, self.space, self.store, self._rehearsal, self._fits = model, anatomy, space, store, rehearsal, fits
        self._choices = text if isinstance(text, Choices) else None
        self.tokens = text.tokens if isinstance(text, Choices) else text
        self._every = _EVERY if self._choices is None else 1
        together = 1 if self._choices is None else self._choices.ways  # rows of one example
        self.batch = max(min(batch, len(self.tokens) // _SHARES) // together, 1) * together
        self.blocks = 0.0  # passes of the whole text through a block computed so far, the cost of a search
        self.discarded = 0  # candidates whose value is no number
        self._branches = {site.name: site for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite)}
        self._states = Bounded(memory // 2)
        self._weights = Bounded(memory // 2)
        self._values: dict[_Key, float] = {}
        self._stack = ExitStack()
        with torch.no_grad(), evaluating(model):
            self._entry: States = enter(model, anatomy, self.tokens, placement, self.batch, self._stack)
            self._look_at_dense(objective, top, folder, identity)
        self._log = _open(log, fingerprint(identity, str(space.levels)), self._values)

    def close(self) -> None:
        """Give back what the service holds."""
        self._stack.close()

    def forget(self) -> None:
        """Know no value and no state any more: the next search costs what a first one does."""
        self._values.clear()
        self._states = Bounded(self._states.limit)

    def __call__(self, queries: Sequence[Query]) -> list[Trial]:
        """The value of every query, on its part of the text in whole batches; infinity for one that is no number, which is
        counted."""
        parts = [self._part(query) for query in queries]
        return [Trial(query.candidate, self._value(query, part), len(part) / len(self.tokens))
                for query, part in zip(queries, parts, strict=True)]

    def _part(self, query: Query) -> range:
        """The sequences to look at: the share of a query rounded up to whole batches, and as many further on for every part."""
        total = len(self.tokens)
        count = min(math.ceil(query.share * total / self.batch - 1e-9) * self.batch, total)
        start = query.part % (total // count) * count
        return range(start, start + count)

    def _value(self, query: Query, part: range) -> float:
        every = self._every if query.partial else 1
        mark = self.space.mark(query.candidate)
        key = (mark, part.start, part.stop, every)
        known = self._values.get(key)
        if known is None:
            with torch.no_grad(), evaluating(self.model):
                known = self._divergence(query.candidate, part, every)
            if not math.isfinite(known):
                self.discarded += 1
                known = math.inf
            self._values[key] = known
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"candidate": mark, "from": part.start, "to": part.stop, "every": every,
                                           "gone": round(self.space.removed(query.candidate)), "value": known}) + "\n")
        return known

    def _divergence(self, candidate: Candidate, part: range, every: int) -> float:
        hidden, depth = self._begin(candidate, part)
        while depth < len(self.anatomy.blocks):
            hidden = self._through(candidate, depth, hidden)
            depth += 1
            self._states.put((part.start, self._prefix(candidate, depth)), hidden)
        total = sum(self._compare(hidden[rows], slice(part.start + rows.start, part.start + rows.stop), every)
                    for rows in self._entry.batches(len(part)))
        return total * len(self.tokens) / (len(part) * self._size(every))

    def _begin(self, candidate: Candidate, part: range) -> tuple[Tensor, int]:
        """The deepest states that are known for the candidate, and the block they enter."""
        for depth in range(len(self.anatomy.blocks), 0, -1):
            for start in dict.fromkeys((part.start, 0)):  # what was looked at as a part, and the whole text
                known = self._states.get((start, self._prefix(candidate, depth)))
                if known is not None and start + len(known) >= part.stop:
                    return known[part.start - start : part.stop - start], depth
        return self._entry.hidden[part.start : part.stop], 0

    def _through(self, candidate: Candidate, depth: int, hidden: Tensor) -> Tensor:
        """One block, with the candidate's weights in it."""
        block: nn.Module = self.model.get_submodule(self.anatomy.blocks[depth].name)
        after = torch.empty_like(hidden)
        with self._wearing(candidate, depth):
            for rows in self._entry.batches(len(hidden)):
                after[rows] = self._entry.call(block, depth, hidden[rows]).to(after.device)
        self.blocks += len(hidden) / len(self.tokens)
        if self._rehearsal is not None:
            repaired = self._rehearsal.passes(depth, self._skipped(candidate))
            self.blocks += repaired * self._rehearsal.entry.numel() / self._entry.hidden.numel()
        return after

    @contextmanager
    def _wearing(self, candidate: Candidate, depth: int) -> Iterator[None]:
        """The model with what the candidate says of one block."""
        here = [(index, site, candidate[index]) for index, site in enumerate(self.space.sites) if site.block == depth]
        skipped = [site for site in self._skipped(candidate) if site.block == depth]
        if isinstance(self.space, ChannelSpace):
            silent, space = {site.branch for site in skipped}, self.space
            stay = [(index, space.sites[index]) for index, site, _ in here if site.branch not in silent]
            kept = {site: space.kept(candidate, index) for index, site in stay if space.gone(candidate, index)}
            stored = {f"{name}.weight": self._stored(name, level) for index, site in stay if (level := space.level(candidate, index))
                      for name in site.matrices}
            if self._fits:
                stored |= {f"{site.consumer}.weight": self._fits.weight(self.model.get_submodule(site.consumer), site, mask)
                           for site, mask in kept.items()}
            with subnet(self.model, stored), sliced(self.model, kept), silenced(self.model, skipped):
                yield
            return
        weights = {f"{name}.weight": self._weight(name, level) for _, site, level in here if not isinstance(site, SublayerSite)
                   for name in [_matrix(site)]}
        with subnet(self.model, weights), self._repaired(candidate, depth), silenced(self.model, skipped):
            yield

    @contextmanager
    def _repaired(self, candidate: Candidate, depth: int) -> Iterator[None]:
        """One block as the candidate's repair leaves it."""
        if self._rehearsal is None:
            yield
            return
        with self._rehearsal.block(depth, self._skipped(candidate), self._calibrating(candidate, depth)) as behind:
            self._states.put(("repair", self._prefix(candidate, depth + 1)), behind)
            yield

    def _calibrating(self, candidate: Candidate, depth: int) -> Tensor:
        """The stream of the repaired model at the entry of a block, of the text that repairs are fitted on."""
        known = self._states.get(("repair", self._prefix(candidate, depth))) if depth else self._rehearsal.entry
        if known is None:
            with self._rehearsal.block(depth - 1, self._skipped(candidate), self._calibrating(candidate, depth - 1)) as known:
                self._states.put(("repair", self._prefix(candidate, depth)), known)
        return known

    def _skipped(self, candidate: Candidate) -> list[SublayerSite]:
        if isinstance(self.space, ChannelSpace):  # a branch that has lost all its channels is left out, bias and all
            return [self._branches[site.branch] for index, site in enumerate(self.space.sites)
                    if self.space.gone(candidate, index) == site.count and site.branch in self._branches]
        return [site for index, (site, level) in enumerate(zip(self.space.sites, candidate, strict=True))
                if isinstance(site, SublayerSite) and self.space.gone[index][level] > 0]

    def _weight(self, name: str, level: int) -> Tensor:
        known = self._weights.get((name, level))
        if known is None:
            known = self._stored(name, level)
            if self.space.levels[level] > 0:  # the dense one is the model's own
                self._weights.put((name, level), known)
        return known

    def _stored(self, name: str, level: int) -> Tensor:
        assert self.store is not None  # spaces of branches or channels alone have none
        dense: Any = self.model.get_submodule(name).weight
        return self.store.weight(name, level, dense.data)

    def _prefix(self, candidate: Candidate, depth: int) -> Hashable:
        """What the states at the entry of block `depth` depend on."""
        return depth, tuple(level for site, level in zip(self.space.sites, candidate, strict=True) if site.block < depth)

    def _through_dense(self) -> Tensor:
        """The states behind the last block of the dense model."""
        hidden = self._entry.hidden.clone()
        for depth, block in enumerate(self.anatomy.blocks):
            module = self.model.get_submodule(block.name)
            for rows in self._entry.batches():
                hidden[rows] = self._entry.call(module, depth, hidden[rows]).to(hidden.device)
        return hidden

    def _look_at_dense(self, objective: Objective, top: int, folder: Path | None, identity: str) -> None:
        """What candidates are compared with, batch by batch, for whole ones and for partial ones."""
        file = folder / f"dense-{identity}.safetensors" if folder and objective == "divergence" else None
        self.dense = 0.0  # the divergence of the dense model from itself
        self._targets: dict[int, list[Any]] = {}  # of Target, by the positions they are for
        if file and intact(file):
            self._targets = unpacked(file, self._entry.device)
            return
        hidden = self._through_dense()
        for every in {1, self._every}:
            self._targets[every] = [self._target(hidden[rows], rows, objective, top, every) for rows in self._entry.batches()]
        if objective != "divergence":
            self.dense = sum(self._compare(hidden[rows], rows, 1) for rows in self._entry.batches()) / self._size(1)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            keep_tensors(file, packed(self._targets))

    def _size(self, every: int) -> int:
        """Losses that are summed over the whole text."""
        return sum(target.size for target in self._targets[every])

    def _target(self, hidden: Tensor, rows: slice, objective: Objective, top: int, every: int) -> Target:
        if objective == "divergence":
            return Predicted.of(self._logits(rows, hidden, every), top)
        following = self.tokens[rows, 1:][:, ::every].to(self._entry.device)
        if self._choices is None:
            return Following(following)
        examples = slice(rows.start // self._choices.ways, rows.stop // self._choices.ways)
        return Chosen(following, self._choices.chosen[rows, 1:].to(following.device), self._choices.answers[examples].to(following.device))

    def _compare(self, hidden: Tensor, rows: slice, every: int) -> float:
        """The sum over a batch's losses."""
        return self._targets[every][rows.start // self.batch].loss(self._logits(rows, hidden, every))

    def _logits(self, rows: slice, hidden: Tensor, every: int) -> Iterator[Tensor]:
        """The logits of a batch at one of `every` positions, a few at a time."""
        tokens, hidden = (value[:, ::every].to(self._entry.device) for value in (self.tokens[rows], hidden))
        step = positions_at_once(self.model, self.batch)
        for start in range(0, tokens.shape[1], step):
            part = slice(start, start + step)
            yield self._entry.leave(self.model, self.anatomy, tokens[:, part], hidden[:, part])


def _matrix(site: Site) -> str:
    """The matrix in which a site's zeros are: of channels, the one that reads them."""
    return site.consumer if isinstance(site, ChannelSite) else site.name


def _open(log: Path | None, identity: str, values: "dict[_Key, float]") -> Path | None:
    """Read back what an interrupted search has valued. Raises RecipeError when the log is another search's."""
    if log is None:
        return None
    if not (log.exists() and log.stat().st_size):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
        return log
    head, *trials = log.read_text(encoding="utf-8").splitlines(keepends=True)
    if head != json.dumps({"identity": identity}) + "\n":
        raise RecipeError(f"{log}: holds the trials of another search. Name another folder, or delete this one.")
    if trials and not trials[-1].endswith("\n"):  # cut off when the search was interrupted
        os.truncate(log, log.stat().st_size - len(trials.pop().encode()))
    for number, line in enumerate(trials, 2):
        try:
            trial = json.loads(line)
            mark = trial["candidate"]
            values[mark if isinstance(mark, str) else tuple(mark), trial["from"], trial["to"], trial["every"]] = trial["value"]
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f"{log}, line {number}: is no trial; the file is damaged. Delete it to begin the search again.") from None
    return log
