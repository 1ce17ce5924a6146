"""MLPs that are solved as a whole, each when the stream leaves its block."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .auxiliary import Between
from .calibration.blocks import Enough, States, evaluating
from .calibration.pair import Watch
from .calibration.placement import Placement
from .calibration.stream import Beside, Leaving, View
from .environment import Clock
from .errors import RecipeError
from .mlp import MLPProblem, Tokens
from .problem import LayerProblem, LayerSolution
from .recipe import Stage
from .result import SiteRecord
from .sites import Anatomy, ChannelSite, LinearSite, Site, SublayerSite
from .stats import InputStats
from .surgery.write import read_weight, write

__all__ = ["Joined", "check_mlps"]

_TOKENS = 1024  # of which all that lies between an MLP's matrices is in memory
_PROBE = 8  # tokens that show what lies there
_TOLERANCE = 0.02  # of that, in half precision


@dataclass(frozen=True)
class _MLP:
    """The matrices of one."""

    branch: str
    first: tuple[LinearSite, ...]  # one, or gate and up
    last: LinearSite
    between: Between

    @property
    def matrices(self) -> tuple[LinearSite, ...]:
        return *self.first, self.last


@torch.no_grad()
def check_mlps(model: Any, anatomy: Anatomy, stage: Stage, sites: Sequence[Site], tokens: Int[Tensor, "samples length"]) -> None:
    """Whether a solver of whole MLPs, if the stage has one, can do what is asked of it. Raises RecipeError."""
    if not _whole(stage):
        return
    if stage.target.fisher:
        raise RecipeError("target.fisher: a solver of whole MLPs counts all tokens alike. Leave it out, or use the solver inside alone.")
    found = _mlps(model, anatomy, sites)
    if not found:
        raise RecipeError("solver: solves MLPs as a whole, and there is none of which the stage prunes every matrix. Skip none of them, or "
                          "use the solver inside alone.")
    seen: dict[str, Tensor] = {}
    with evaluating(model), ExitStack() as stack:
        for mlp in found:
            for site in mlp.first:
                hook = partial(_keep, seen, site.name)
                stack.callback(model.get_submodule(site.name).register_forward_hook(lambda _, __, gives, hook=hook: hook(gives)).remove)
            hook = partial(_keep, seen, mlp.last.name)
            stack.callback(model.get_submodule(mlp.last.name).register_forward_pre_hook(lambda _, given, hook=hook: hook(given[0])).remove)
        model(input_ids=tokens[:1, :_PROBE].to(next(model.parameters()).device))
    for mlp in found:
        read = seen[mlp.last.name].float()
        guess = mlp.between(torch.cat([seen[site.name].float() for site in mlp.first], -1))
        if guess.shape != read.shape or bool((guess - read).norm() > _TOLERANCE * read.norm()):
            raise RecipeError(f"solver: {mlp.last.name} does not read the activation of what {mlp.first[0].name} gives (gated or not), "
                              "as it has to in an MLP that is solved as a whole. Use the solver inside alone.")


def _whole(stage: Stage) -> bool:
    return stage.sites == ("linear",) and hasattr(stage.solver, "solve_mlp")


def _keep(seen: dict[str, Tensor], name: str, value: Tensor) -> None:
    seen[name] = value.reshape(-1, value.shape[-1])


def _mlps(model: Any, anatomy: Anatomy, sites: Sequence[Site]) -> list[_MLP]:
    """Those of which all matrices are among the sites."""
    linear = {site.name: site for site in sites if isinstance(site, LinearSite)}
    branches = {site.name for site in anatomy.sites("sublayer") if isinstance(site, SublayerSite) and site.kind == "mlp"}
    found = []
    for site in anatomy.sites("channel"):
        if isinstance(site, ChannelSite) and site.branch in branches and len(site.producers) <= 2 and set(site.matrices) <= set(linear):
            *first, last = (linear[name] for name in site.matrices)
            found.append(_MLP(site.branch, tuple(first), last, Between(_activation(model), len(site.producers) == 2)))
    return found


def _activation(model: Any) -> Callable[[Tensor], Tensor]:
    """By the config, which calls it by one of several names."""
    from transformers.activations import ACT2FN

    names = (getattr(model.config, key, None) for key in ("hidden_activation", "hidden_act", "activation_function", "activation"))
    name = next((name for name in names if name is not None), None)
    if name not in ACT2FN:
        raise RecipeError(f"solver: the config's activation is {name!r}, which transformers does not know. Use the solver inside alone.")
    activation: Callable[[Tensor], Tensor] = ACT2FN[name]
    return activation


@dataclass
class Joined:
    """The MLPs of one stage: where its solver takes them as a whole, their matrices are remembered as they are solved alone, and solved
    again together."""

    model: Any
    anatomy: Anatomy
    stage: Stage
    sites: Sequence[Site]
    placement: Placement
    clock: Clock
    watch: Watch
    _alone: dict[str, tuple[LayerProblem, LayerSolution, Tensor | None]] = field(default_factory=dict)  # by matrix, with its dense bias

    def remember(self, view: View, problem: LayerProblem, solution: LayerSolution) -> None:
        """A matrix that has just been solved and written; not its statistics."""
        if not _whole(self.stage):
            return
        bias = getattr(view.module, "bias", None)
        if bias is not None:
            bias = bias.detach().float() - (0 if solution.bias is None else solution.bias)
        self._alone[view.site.name] = replace(problem, stats=InputStats(1, "nothing")), solution, bias

    def in_turn(self, done: Collection[int], records: list[SiteRecord], then: Leaving | None,
                finish: Callable[[int], None]) -> Leaving | None:
        """What `stream` is to call when it leaves a block: its MLPs are solved, unless it is `done`, and their records put right; then
        comes what would come without, `then`, or where there is nothing of that kind, `finish`."""
        if not _whole(self.stage):
            return then
        found = _mlps(self.model, self.anatomy, self.sites)

        def leaving(depth: int, states: States, beside: Beside | None) -> None:
            ours = [mlp for mlp in found if mlp.last.block == depth]
            for mlp in ours if depth not in done else ():
                with self.clock("solving"):
                    self._solve(mlp, states, beside, records)
                self.watch("solving MLPs", found.index(mlp) + 1, len(found))
            self._alone.clear()
            if then:
                then(depth, states, beside)
            else:
                finish(depth)

        return leaving

    def _solve(self, mlp: _MLP, states: States, beside: Beside | None, records: list[SiteRecord]) -> None:
        """The record of the last matrix gets the error of the MLP, which is that of its output."""
        start = time.perf_counter()
        with ExitStack() as stack:
            problem = self._problem(mlp, states, beside, stack)
            solver: Any = self.stage.solver
            solution = solver.solve_mlp(problem)
        for site, bias, found in zip(mlp.matrices, problem.biases, solution.matrices, strict=True):
            module: Any = self.model.get_submodule(site.name)
            if bias is not None:
                module.bias.copy_(bias)
            write(module, found)
        rate = (time.perf_counter() - start) / sum(site.size for site in mlp.matrices)
        sizes, dense = {site.name: site.size for site in mlp.matrices}, {matrix.name: matrix for matrix in problem.first}
        weights = {site.name: found.weight for site, found in zip(mlp.matrices, solution.matrices, strict=True)}
        for place, record in enumerate(records):
            if record.site in sizes:
                error = solution.error if record.site == mlp.last.name else dense[record.site].error(weights[record.site])
                records[place] = replace(record, error=error, seconds=record.seconds + rate * sizes[record.site])

    def _problem(self, mlp: _MLP, states: States, beside: Beside | None, stack: ExitStack) -> MLPProblem:
        alone = [self._alone[site.name] for site in mlp.matrices]
        problems = [problem for problem, _, _ in alone]
        if beside is not None:  # their weights are goals, not the dense ones
            block = self.anatomy.blocks[mlp.last.block].name
            problems = [replace(problem, weight=read_weight(beside.block.get_submodule(_within(block, site))).to(states.device))
                        for problem, site in zip(problems, mlp.matrices, strict=True)]
        biases = tuple(bias for _, _, bias in alone)
        tokens = self._tokens(mlp, states, beside, problems, biases, stack)
        stats = InputStats(mlp.first[0].shape[1], "gram", states.device, name=mlp.first[0].name, readers=len(mlp.first))
        for x, _ in tokens():
            stats.update(x)
        first = tuple(replace(problem, stats=stats) for problem in problems[:-1])
        return MLPProblem(first, problems[-1], biases, mlp.between, tokens, tuple(solution for _, solution, _ in alone))

    def _tokens(self, mlp: _MLP, states: States, beside: Beside | None, problems: Sequence[LayerProblem], biases: Sequence[Tensor | None],
                stack: ExitStack) -> Callable[[], Tokens]:
        """What the MLP reads and what it is to give wait where hidden states do, in their precision."""
        count, (width, out) = states.hidden.shape[:-1].numel(), (mlp.first[0].shape[1], mlp.last.shape[0])
        read, aims = (stack.enter_context(self.placement.hidden((count, size), states.hidden.dtype)) for size in (width, out))
        name = self.anatomy.blocks[mlp.last.block].name
        own, path = self.model.get_submodule(name), _within(name, mlp.first[0])
        at = 0
        for rows in states.batches():
            x = _read(own, path, mlp.last.block, states, rows)
            goal = x
            if beside is not None:
                goal = x + self.stage.target.asymmetry * (_read(beside.block, path, mlp.last.block, beside.states, rows) - x)
            read[at : at + len(x)], aims[at : at + len(x)] = x.to(read), _given(goal, mlp, problems, biases).to(aims)
            at += len(x)

        def tokens() -> Tokens:
            for start in range(0, count, _TOKENS):
                rows = slice(start, min(start + _TOKENS, count))
                yield read[rows].to(states.device, torch.float32), aims[rows].to(states.device, torch.float32)

        return tokens


def _within(block: str, site: LinearSite) -> str:
    return site.name.removeprefix(f"{block}.")


def _read(block: nn.Module, path: str, depth: int, states: States, rows: slice) -> Tensor:
    """What the matrix at `path` of a block reads of some sequences, in float32."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])
        raise Enough

    handle = block.get_submodule(path).register_forward_pre_hook(hook)
    try:
        with suppress(Enough):
            states.run(block, depth, rows)
    finally:
        handle.remove()
    return seen[0].float().flatten(0, -2)


def _given(x: Tensor, mlp: _MLP, problems: Sequence[LayerProblem], biases: Sequence[Tensor | None]) -> Tensor:
    """What the dense MLP gives."""
    parts = [nn.functional.linear(x, problem.weight, bias) for problem, bias in zip(problems[:-1], biases[:-1], strict=True)]
    return nn.functional.linear(mlp.between(torch.cat(parts, -1)), problems[-1].weight, biases[-1])
