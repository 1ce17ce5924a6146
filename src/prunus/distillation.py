"""What a network in training is told: by labels, and by what a teacher says and how it comes to that."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

__all__ = ["distilled_loss", "streams_apart", "task_loss"]


def task_loss(logits: Float[Tensor, "rows outputs"], targets: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy with the index of a class per row, or the mean squared error to a float per row, in float32."""
    if targets.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(1), targets)
    return functional.cross_entropy(logits.float(), targets)


def distilled_loss(student: Float[Tensor, "rows outputs"], teacher: Float[Tensor, "rows outputs"], targets: Tensor,
                   temperature: float, labels: float = 1.0) -> Float[Tensor, ""]:
    """T^2 CE(softmax(teacher / T), student / T) + labels CE(targets, student), of classes; of numbers the mean squared error to the
    teacher, and the targets are not used. Nothing flows back to the teacher. (Klein et al. 2024, their code's loss.)

    T^2 keeps the size of the first part's gradient, which else falls as 1 / T^2 (Hinton et al. 2015).
    """
    teacher = teacher.detach().float()
    if targets.is_floating_point():
        return functional.mse_loss(student.float(), teacher)
    said = torch.softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.cross_entropy(student.float() / temperature, said) + labels * task_loss(student, targets)


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
