"""What a model with a head answers to the examples of a task, and how good that is."""

import time
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from .calibration.blocks import evaluating
from .calibration.tasks import Encoded, Labelled, encoded, outputs_of
from .errors import CalibrationError
from .scores import Score, scored
from .stats import finite
from .widening import widened

__all__ = ["answers", "score", "teachings", "what_is_said"]


def score(model: Any, examples: Encoded, batch: int = 32) -> Score:
    """A model, or a sub-network for as long as it is worn, on a split of a task.

    The model computes where it is, without dropout, and is left as it was. Raises CalibrationError when an answer is not finite.
    """
    start = time.perf_counter()
    found = answers(model, examples, batch)
    said = what_is_said(found)
    value = scored(examples.metric, said, examples.targets, examples.classes)
    return Score(examples.metric, value, f"{examples.protocol}, {examples.metric}", tuple(map(float, said)),
                 tuple(map(float, examples.targets)), examples.classes, time.perf_counter() - start)


def what_is_said(outputs: Float[Tensor, "examples outputs"]) -> Num[Tensor, "examples"]:
    """The index of a class, or the number where there is one output."""
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(1)


@widened()
@torch.no_grad()
def answers(model: Any, examples: Encoded, batch: int = 32) -> Float[Tensor, "examples outputs"]:
    """The logits, or the numbers, in the order of the examples, on the CPU in float32; examples of like length run together."""
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda index: len(examples.tokens[index]))
    found = torch.zeros(len(examples), examples.classes)
    with evaluating(model):
        for start in range(0, len(order), batch):
            which = order[start : start + batch]
            found[which] = model(**examples.batch(which, device)).logits.float().cpu()
    if not finite(found):
        raise CalibrationError(f"{examples.protocol.split(',')[0]}: an answer of the model is not finite. It overflows in {model.dtype} or "
                               "its weights are damaged; try --dtype float32.")
    return found


def teachings(teacher: Any, tokenizer: Any, read: Labelled, student: Any) -> Float[Tensor, "examples outputs"]:
    """What a teacher, which has its own tokenizer, answers to the training split of a task, in the order of the student's outputs.
    Raises RecipeError when either has no head of the task's labels."""
    theirs, ours = outputs_of(teacher, read), outputs_of(student, read)
    return answers(teacher, encoded(read, "train", teacher, tokenizer))[:, [theirs.index(label) for label in ours]]
