"""Weights with many zeros in few bytes. This file stands alone: sparse checkpoints carry its text."""

import json
import zlib
from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = ["FILE", "expand", "pack"]

FILE = "sparse.safetensors"  # never model.safetensors: who does not know the format finds no weights, and says so


def pack(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of every weight that gets smaller by it: a bit per weight, and the values that are not 0, byte plane by byte plane, each
    compressed; a plane of exponents is mostly the same few bytes. What was packed, by name, is told beside.
    """
    packed: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, weight in weights.items():
        flat = weight.detach().cpu().contiguous().flatten()
        kept = flat != 0
        planes = flat[kept].view(torch.uint8).view(-1, flat.element_size()).T
        parts = [torch.from_numpy(numpy.packbits(kept.numpy(), bitorder="little")), *planes]
        small = [torch.frombuffer(bytearray(zlib.compress(part.contiguous().numpy().tobytes(), 6)), dtype=torch.uint8) for part in parts]
        if sum(len(part) for part in small) >= flat.nbytes:
            packed[name] = weight.detach().cpu().contiguous()
            continue
        packed |= {f"{name}.{place}": part for place, part in enumerate(small)}
        told[name] = {"shape": list(weight.shape), "dtype": str(weight.dtype).removeprefix("torch."), "parts": len(small)}
    return packed, told


def expand(packed: dict[str, Tensor], told: str) -> dict[str, Tensor]:
    """The weights, bit for bit."""
    found = dict(packed)
    for name, told_of in json.loads(told).items():
        parts = [numpy.frombuffer(zlib.decompress(found.pop(f"{name}.{place}").numpy().tobytes()), numpy.uint8)
                 for place in range(told_of["parts"])]
        kept = numpy.unpackbits(parts[0], bitorder="little")
        planes = numpy.stack(parts[1:], 1)
        dtype = getattr(torch, told_of["dtype"])
        size = torch.Size(told_of["shape"])
        weight = torch.zeros(size.numel(), dtype=dtype)
        if planes.size:
            weight[torch.from_numpy(kept[: len(weight)].astype(bool))] = torch.frombuffer(bytearray(planes.tobytes()), dtype=dtype)
        found[name] = weight.view(size)
    return found
