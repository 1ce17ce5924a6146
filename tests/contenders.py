"""Tiny models to compare: a dense one, and what is left of it."""

import copy
from pathlib import Path
from typing import Any

import torch

from prunus.anatomy import describe
from prunus.comparing.values import Asked

from .tiny import tiny_model, tiny_tokenizer

QUICK = {"length": 32, "tokens": 512, "prompts": ("A plum is",), "answer": 4, "rounds": 0}


def asked(**changes: Any) -> Asked:
    """A comparison of a fraction of a second."""
    return Asked(**{**QUICK, **changes})


def saved(folder: Path, model: Any) -> str:
    """A folder with a model, as a source."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def without(model: Any, share: float) -> Any:
    """A copy whose least weights are zero, so many of every matrix."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for site in describe(found).sites("linear"):
            weight = found.get_submodule(site.name).weight
            least = weight.abs().flatten().argsort()[: round(share * weight.numel())]
            weight.view(-1)[least] = 0
    return found


def three(folder: Path) -> list[str]:
    """Sources: a dense model, one that has lost half of its weights, and one that has lost nearly all."""
    dense = tiny_model()
    return [saved(folder / "dense", dense), saved(folder / "half", without(dense, 0.5)), saved(folder / "wreck", without(dense, 0.98))]
