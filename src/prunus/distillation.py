"""What a network in training is told: by labels, and by what a teacher says and how it comes to that."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["UNKNOWN", "distilled_loss", "garbled", "streams_apart", "task_loss"]

UNKNOWN = -100  # a target that nobody knows; PyTorch's cross-entropy passes over such rows


def task_loss(logits: Float[Tensor, "rows outputs"], targets: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy with the index of a class per row, or the mean squared error to a float per row, in float32."""
    if targets.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(1), targets)
    return functional.cross_entropy(logits.float(), targets)


def distilled_loss(student: Float[Tensor, "rows outputs"], teacher: Float[Tensor, "rows outputs"], targets: Tensor,
                   temperature: float, labels: float = 1.0) -> Float[Tensor, ""]:
    """T^2 CE(softmax(teacher / T), student / T) + labels CE(targets, student), of classes; of numbers the mean squared error to the
    teacher, and the targets are not used. Nothing flows back to the teacher. (Klein et al. 2024, their code's loss.) The second part is
    the mean over the rows whose target is not UNKNOWN, and 0 where all are.

    T^2 keeps the size of the first part's gradient, which else falls as 1 / T^2 (Hinton et al. 2015).
    """
    teacher = teacher.detach().float()
    if targets.is_floating_point():
        return functional.mse_loss(student.float(), teacher)
    said = torch.softmax(teacher / temperature, dim=1)
    found = temperature**2 * functional.cross_entropy(student.float() / temperature, said)
    return found + labels * task_loss(student, targets) if bool((targets != UNKNOWN).any()) else found


def garbled(tokens: Int[Tensor, "rows length"], read: Int[Tensor, "rows length"] | None,
            share: float) -> tuple[Int[Tensor, "rows length"], Bool[Tensor, "rows"]]:
    """Tokens of which, in about half of the rows, a share was replaced by others of these tokens; and which rows are as they were.

    The first and the last token that is read (`read` is 1 there; none: all are read) stay, and so do those equal to them where not
    everything is: there they mark where a text begins and ends. By the global random generator.
    """
    inner = torch.ones_like(tokens, dtype=torch.bool)
    if read is not None:
        last = tokens.gather(1, read.sum(1, keepdim=True) - 1)
        inner = read.bool() & (tokens != tokens[:, :1]) & (tokens != last)
    others = tokens[inner]
    gone = inner & (torch.rand(len(tokens), 1) < 0.5).to(tokens.device) & (torch.rand(tokens.shape) < share).to(tokens.device)
    if len(others):
        drawn = others[torch.randint(len(others), tokens.shape).to(tokens.device)]
        tokens = torch.where(gone, drawn, tokens)
    return tokens, ~gone.any(1)


def streams_apart(student: Sequence[Float[Tensor, "rows tokens width"]], teacher: Sequence[Float[Tensor, "rows tokens width"]],
                  read: Bool[Tensor, "rows tokens"] | None = None) -> Float[Tensor, ""]:
    """The squared distance of the streams of two models, token by token as a share of the teacher's square; the mean over the tokens that
    are read (none named: all) and over the streams, in float32. Nothing flows back to the teacher.

    After the hidden-state distillation of Jiao et al. 2020 (TinyBERT, equation 8), which compares squares as they are: there, streams
    with a few large channels, as behind the later blocks of many models, outweigh all others.
    """
    apart = []
    for ours, theirs in zip(student, teacher, strict=True):
        aim = theirs.detach().float()
        distance = (ours.float() - aim).square().sum(-1) / aim.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        apart.append(distance.mean() if read is None else distance[read].mean())
    return torch.stack(apart).mean()
