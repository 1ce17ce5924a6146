"""What candidates are compared with, batch by batch: the dense model's predictions, the text's next tokens, or right answers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .traits import total

__all__ = ["Chosen", "Following", "Predicted", "Target", "packed", "unpacked"]

_CACHED = 2**20  # elements of logits that are worked on together on a CPU


@dataclass(frozen=True)
class Predicted:
    """The dense model's most probable tokens at every position, their log-probabilities, and that of all others together.

    The loss is the sum over positions of KL(dense || logits) on this coarser distribution.
    """

    index: tuple[Int[Tensor, "_ top"], ...]  # by slice: sequence by sequence, position by position
    known: tuple[Float[Tensor, "_ top"], ...]

    @classmethod
    def of(cls, slices: Iterable[Tensor], top: int) -> "Predicted":
        index, known = [], []
        for logits in slices:
            rows = logits.flatten(0, 1)
            largest, where = rows.topk(min(top, rows.shape[-1]))
            known.append(largest.float() - _normaliser(rows))
            index.append(where.to(torch.int32))
        return cls(tuple(index), tuple(known))

    @property
    def size(self) -> int:
        return sum(len(part) for part in self.index)

    def loss(self, slices: Iterable[Tensor]) -> float:
        return sum(_divergence(index, known, logits.flatten(0, 1))
                   for index, known, logits in zip(self.index, self.known, slices, strict=True))


def _divergence(index: Tensor, known: Tensor, logits: Tensor) -> float:
    theirs = logits.gather(-1, index.long()).float() - _normaliser(logits)
    inside = (known.exp() * (known - theirs)).sum(-1)
    if index.shape[-1] < logits.shape[-1]:
        rest = _rest(known)
        inside += rest.exp() * (rest - _rest(theirs))
    return total(inside)


@dataclass(frozen=True)
class Following:
    """The tokens that come next; nothing follows the last one of a sequence. The loss is their negative log-likelihood."""

    tokens: Int[Tensor, "sequences positions"]

    @property
    def size(self) -> int:
        return self.tokens.numel()

    def loss(self, slices: Iterable[Tensor]) -> float:
        return -total(_log_likelihoods(self.tokens, slices))


@dataclass(frozen=True)
class Chosen:
    """Multiple-choice examples. The loss is the number of examples whose most probable choice is not the right one.

    A choice's probability is that of all its tokens together (lm-evaluation-harness calls the share of right ones acc).
    """

    tokens: Int[Tensor, "rows positions"]  # that come next
    chosen: Bool[Tensor, "rows positions"]  # those that belong to the choice
    answers: Int[Tensor, "examples"]

    @property
    def size(self) -> int:
        return len(self.answers)

    def loss(self, slices: Iterable[Tensor]) -> float:
        likelihoods = (_log_likelihoods(self.tokens, slices) * self.chosen).sum(1)
        likelihoods[~self.chosen.any(1)] = -math.inf  # no choice: the example has fewer than others
        found = likelihoods.view(len(self.answers), -1)
        if bool(found.isnan().any()):
            return math.nan
        return float((found.argmax(1) != self.answers).sum())


Target = Predicted | Following | Chosen  # each has a size, the losses in it, and sums them from the logits of its positions, in slices


def _log_likelihoods(tokens: Int[Tensor, "sequences positions"], slices: Iterable[Tensor]) -> Float[Tensor, "sequences positions"]:
    """Of the tokens that come next; logits of more positions are passed over."""
    found: list[Tensor] = []
    first = 0
    for logits in slices:
        here = tokens[:, first : first + logits.shape[1]]
        rows = logits[:, : here.shape[1]].flatten(0, 1)
        found.append((rows.gather(-1, here.reshape(-1, 1)).float() - _normaliser(rows)).view(here.shape))
        first += logits.shape[1]
    return torch.cat(found, 1)


def _normaliser(logits: Float[Tensor, "tokens words"]) -> Float[Tensor, "tokens 1"]:
    """log sum exp of every row in float32; on a CPU a few rows at a time, as what stays in its cache is not waited for."""
    if not logits.numel():
        return logits.new_zeros(len(logits), 1, dtype=torch.float32)
    rows: Sequence[Tensor] = logits.split(max(1, _CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits))
    return torch.cat([row.float().logsumexp(-1, keepdim=True) for row in rows])


def _rest(known: Float[Tensor, "tokens top"]) -> Float[Tensor, "tokens"]:
    """The log-probability of all tokens that are not among these."""
    return torch.log1p(-known.exp().sum(-1).clamp(max=1 - 1e-6))


def packed(targets: Mapping[int, Sequence[Predicted]]) -> dict[str, Tensor]:
    """Targets by the positions they are for, as named tensors."""
    return {f"{every}.{batch}.{part}.{name}": value.cpu() for every, batches in targets.items() for batch, target in enumerate(batches)
            for part, pair in enumerate(zip(target.index, target.known, strict=True))
            for name, value in zip(("index", "known"), pair, strict=True)}


def unpacked(file: Path, device: torch.device) -> dict[int, list[Predicted]]:
    """What was packed."""
    from safetensors.torch import load_file

    found: dict[int, dict[int, dict[int, dict[str, Tensor]]]] = {}
    for name, value in load_file(file, device=str(device)).items():
        every, batch, part, kind = name.split(".")
        found.setdefault(int(every), {}).setdefault(int(batch), {}).setdefault(int(part), {})[kind] = value
    return {every: [Predicted(*(tuple(parts[part][kind] for part in sorted(parts)) for kind in ("index", "known")))
                    for _, parts in sorted(batches.items())] for every, batches in found.items()}
