"""What is kept of a block is trained until the block gives what the dense one gave."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.blocks import frozen
from ..calibration.pair import Place, Watch, places, unwatched
from ..calibration.placement import Placement
from ..calibration.positions import at_positions
from ..calibration.repair import LeastSquares
from ..calibration.reselection import Masked, Reselection, reselection_of
from ..calibration.teaching import check_sequences, in_small_steps, matrices_in, precise, sizes, train_kept
from ..distillation import streams_apart
from ..errors import RecipeError
from ..silence import silenced
from ..sites import Anatomy, SublayerSite

__all__ = ["Reconstruct"]

_DECAY = 0.95  # of the second moment: a block is trained in some hundred steps, in which 0.999 would remember the first of them
_Error = Callable[..., Float[Tensor, ""]]  # of some sequences, or of some positions in them


@dataclass(frozen=True)
class Reconstruct:
    """Block by block, in the order of the forward pass: all weights of its matrices that are not zero, and their biases, are trained by
    Adam, whose rate falls by a cosine, so that the stream behind the block is the dense model's; its input is the stream of the model
    repaired so far. Norms stay as they are: the held-out error falls further, and no gradient is needed in front of a block's first
    matrices. Where matrices or channels are pruned, a block is trained before the next one is pruned.

    The error of a token is its squared distance as a share of the dense stream's square there, as the norms that read the stream see
    it. After every epoch it is measured on an eighth of the sequences that are not trained on; the block keeps the best weights it had,
    those before the training among them. Zimmer et al. 2025 ("A Free Lunch in LLM Compression") train one attention or MLP at a time,
    and find that any region with a non-linearity in it does about as well. What is trained together is in float32, with its gradients
    and Adam's two moments; a model in half precision is multiplied in bfloat16.

    A step may look at a share of the `positions` of its sequences, at others each time. Attention is computed of all of them; what lies
    behind it, which is most of a block, treats positions alike and is computed of these alone. So there are more steps for the same work.

    With `reselect` the mask is chosen again while a block is trained, by the number of weights that it keeps in every group of m, row or
    matrix. What is pruned starts from its dense value and follows its gradient as if it were there (straight-through, as in SR-STE, Zhou
    et al. 2021); at each moment, matrix by matrix, up to a twentieth of what is kept gives way to weights with a larger |w| times root
    mean square input (Wanda, Sun et al. 2024), their moments of Adam at zero, and stays out if the held-out error falls with it at once.
    The best weights come with their mask. That takes two more copies of the block's matrices, and some passes over what is held out.
    """

    epochs: int = 3  # through the sequences
    rate: float = 0.01  # Adam's, at first, as a share of the root mean square of a matrix's kept weights
    first: bool = False  # whether every block is repaired by least squares (`patch`) before it is trained
    damping: float = 0.3  # of that
    unit: Literal["branch", "block"] = "block"  # what is trained together
    positions: float = 1.0  # the share of a sequence's positions that a step looks at
    reselect: int = 0  # times in three quarters of the steps at which masks of single weights are chosen again; 0: they stay
    seed: int = 0  # of the order of the sequences

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0:
            raise RecipeError(f"epochs = {self.epochs}, rate = {self.rate:g}: expected at least 1, and a rate above 0.")
        if self.unit not in ("branch", "block"):
            raise RecipeError(f"unit = '{self.unit}': expected 'branch' or 'block'.")
        if not 0 < self.positions <= 1:
            raise RecipeError(f"positions = {self.positions:g}: expected a share above 0 and at most 1.")
        if self.reselect < 0:
            raise RecipeError(f"reselect = {self.reselect}: expected 0 or more times.")
        LeastSquares(self.damping)

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """As of `patch`, where that is first; and there have to be sequences to measure on beside those to train on."""
        if self.first:
            try:
                LeastSquares().check(model, anatomy, tokens, placement, batch)
            except RecipeError as error:
                known = str(error).rpartition(". ")[0]
                raise RecipeError(f"{known}. Train without it first: --recovery reconstruct,first=false.") from None
        check_sequences("reconstruct", tokens)

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> Sequence[str]:
        if self.reselect:
            raise RecipeError(f"reselect = {self.reselect}: masks are chosen again where a block is repaired as soon as it is pruned, and "
                              "here the whole model is. Leave it out.")
        said: list[str] = []
        with torch.no_grad(), frozen(model):
            for place in places(model, anatomy, gone, dense, tokens, placement, in_small_steps(tokens, batch), watch, self.branches):
                said += self.mend(model, place, gone)
        return said

    @property
    def branches(self) -> bool:
        return self.first or self.unit == "branch"

    def mend(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> Sequence[str]:
        if self.first:
            LeastSquares(self.damping).mend(model, place, gone)
        module: nn.Module = model.get_submodule(place.block.name)
        masked = {model.get_submodule(path): matrix for path, matrix in place.masked.items()}  # some of them are away in a moment
        said: list[str] = []
        for unit in self._units(model, place, gone):
            with silenced(model, unit.silent), precise(module, unit.trained):
                error = unit.error(module, place)
                taught = train_kept(unit.trained, list(place.pruned.batches()), error, epochs=self.epochs,
                                    rates=[self.rate * size for size in sizes(unit.trained)],
                                    rng=random.Random(f"{self.seed} {unit.name}"), decay=_DECAY, step=self._step(model, place, unit, error),
                                    reselection=self._reselection(masked, place, unit, error) if self.reselect else None)
            said += taught.remarks(f"recovery 'reconstruct', {unit.name}")
        return said

    def _step(self, model: nn.Module, place: Place, unit: "_Unit", error: _Error) -> Callable[[slice], Float[Tensor, ""]]:
        """The error of some sequences at positions that are drawn again every time."""
        length = place.after.shape[1]
        count = max(1, round(self.positions * length))
        if count == length:
            return error
        rng = random.Random(f"{self.seed} {unit.name} positions")
        there = [branch for branch in place.kept if branch not in unit.silent]

        def step(rows: slice) -> Tensor:
            some = torch.tensor(sorted(rng.sample(range(length), count)), device=place.pruned.device)
            with at_positions(model, place.block, there, length, some):
                return error(rows, some)

        return step

    def _reselection(self, masked: Mapping[Any, Masked], place: Place, unit: "_Unit",
                     error: _Error) -> Reselection:
        """Of the matrices that lost single weights and are trained."""
        def run() -> None:
            for rows in place.pruned.batches():
                error(rows)

        trained = {id(parameter) for parameter in unit.trained}
        return reselection_of({module: matrix for module, matrix in masked.items() if id(module.weight) in trained}, self.reselect, run)

    def _units(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> list["_Unit"]:
        """In the order of the forward pass; none where nothing of a block stays."""
        block, lost = place.block, [branch for branch in place.block.branches if branch in gone]
        if self.unit == "branch":
            return [_Unit(branch.name, (*lost, *block.later(branch)), matrices_in(model, block, [branch]), aim)
                    for branch, aim in zip(place.kept, place.aims, strict=False)]
        return [_Unit(block.name, lost, matrices_in(model, block, place.kept), place.after)] if place.kept else []


@dataclass(frozen=True)
class _Unit:
    """What is trained together."""

    name: str
    silent: Sequence[SublayerSite]  # branches of the block that are gone, and those behind
    trained: Sequence[nn.Parameter]
    aim: Float[Tensor, "samples length width"]  # the dense model's stream behind it

    def error(self, module: nn.Module, place: Place) -> _Error:
        """Of some sequences, or of some positions in them: per token, the squared distance of the two streams as a share of the dense
        one's square."""
        states = place.pruned
        mixed = states.hidden.dtype in (torch.bfloat16, torch.float16)

        def error(rows: slice, some: Int[Tensor, "positions"] | None = None) -> Tensor:
            with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=mixed):
                behind = states.run(module, place.depth, rows)
            aim = self.aim[rows].to(behind.device)
            if some is not None:
                behind, aim = behind.index_select(1, some), aim.index_select(1, some)
            return streams_apart([behind], [aim])

        return error
