"""What is kept of a block is trained until the block gives what the dense one gave."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..calibration.blocks import frozen
from ..calibration.pair import Place, Watch, places, unwatched
from ..calibration.placement import Placement
from ..calibration.repair import LeastSquares
from ..calibration.teaching import check_sequences, precise, train_kept, two_groups
from ..errors import RecipeError
from ..silence import silenced
from ..sites import Anatomy, SublayerSite

__all__ = ["Reconstruct"]


@dataclass(frozen=True)
class Reconstruct:
    """Block by block, in the order of the forward pass: all weights that are not zero are trained by Adam, whose rate falls by a cosine,
    so that the stream behind the block is the dense model's; its input is the stream of the model repaired so far.

    The error of a token is its squared distance as a share of the dense stream's square there, as the norms that read the stream see
    it. After every epoch it is measured on an eighth of the sequences that are not trained on; the block keeps the best weights it had,
    those before the training among them. Zimmer et al. 2025 ("A Free Lunch in LLM Compression") train one attention or MLP at a time,
    and find that any region with a non-linearity in it does about as well. One block is in float32 at a time, with its gradients and
    Adam's two moments.
    """

    epochs: int = 4  # through the sequences
    rate: float = 3e-4  # Adam's, at first
    first: bool = True  # whether every block is repaired by least squares (`patch`) before it is trained
    damping: float = 0.3  # of that
    seed: int = 0  # of the order of the sequences

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0:
            raise RecipeError(f"epochs = {self.epochs}, rate = {self.rate:g}: expected at least 1, and a rate above 0.")
        LeastSquares(self.damping)

    def check(self, model: Any, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement, batch: int) -> None:
        """As of `patch`, where that is first; and there have to be sequences to measure on beside those to train on."""
        check_sequences("reconstruct", self.first, model, anatomy, tokens, placement, batch)

    def recover(self, model: Any, anatomy: Anatomy, gone: Sequence[SublayerSite], dense: Mapping[str, Tensor],
                tokens: Int[Tensor, "samples length"], placement: Placement, batch: int, watch: Watch = unwatched) -> None:
        with torch.no_grad(), frozen(model):
            for place in places(model, anatomy, gone, dense, tokens, placement, two_groups(tokens, batch), watch):
                if self.first:
                    LeastSquares(self.damping).mend(model, place, gone)
                self._train(model, place, gone)

    def _train(self, model: Any, place: Place, gone: Sequence[SublayerSite]) -> None:
        module: nn.Module = model.get_submodule(place.block.name)
        with silenced(model, [branch for branch in place.block.branches if branch in gone]), precise(module) as trained:
            if trained:  # else nothing of the block stays
                train_kept(trained, list(place.pruned.batches()), lambda rows: _distance(module, place, rows).mean(), epochs=self.epochs,
                           rate=self.rate, rng=random.Random(f"{self.seed} {place.depth}"))


def _distance(module: nn.Module, place: Place, rows: slice) -> Float[Tensor, "sequences length"]:
    """Of every token, the squared distance of the two streams behind a block as a share of the dense one's square."""
    states = place.pruned
    mixed = states.hidden.dtype if states.hidden.dtype in (torch.bfloat16, torch.float16) else None
    with torch.autocast(states.device.type, dtype=mixed or torch.bfloat16, enabled=mixed is not None):
        behind = states.run(module, place.depth, rows)
    aim = place.after[rows].to(behind.device).float()
    return (behind.float() - aim).square().sum(-1) / aim.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
