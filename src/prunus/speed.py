"""How fast models are, measured in turn: in PyTorch, and in llama.cpp for GGUF files; and what each branch takes."""

import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .calibration.blocks import enter, evaluating
from .calibration.placement import Placement
from .errors import LoadError, MissingExtra, RecipeError
from .silence import silenced
from .sites import Anatomy
from .traits import model_bytes, predicts_next

__all__ = ["Speed", "branch_seconds", "in_llama_cpp", "in_pytorch", "ratio"]

_LEAST = 1e-6  # seconds: less than that is lost in the noise


@dataclass(frozen=True)
class Speed:
    """What one model did, once per repetition; the k-th repetition of all models was in the same round."""

    prefill: tuple[float, ...]  # tokens of the prompt per second
    decode: tuple[float, ...]  # tokens of the answer per second, one sequence, with the cache
    bytes: int  # of the weights: in memory (PyTorch), or of the file (llama.cpp)


def ratio(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of other / base, with the least and the most."""
    found = [mine / theirs for theirs, mine in zip(base, other, strict=True)]
    return statistics.median(found), min(found), max(found)


@torch.no_grad()
def in_pytorch(models: Sequence[Any], prompt: int = 256, answer: int = 32, repetitions: int = 5,
               watch: Callable[[int, int], None] | None = None) -> list[Speed]:
    """Tokens are random: speed does not depend on them. Raises RecipeError for a model that predicts no next token."""
    for model in models:
        if not predicts_next(model):
            raise RecipeError(f"speed: {type(model).__name__} does not predict the next token.")
    seen: list[list[tuple[float, float]]] = [[] for _ in models]
    for turn in range(repetitions + 1):
        for model, found in zip(models, seen, strict=True):
            found.append(_once(model, prompt, answer))
        if watch:
            watch(turn + 1, repetitions + 1)
    return [Speed(tuple(prefill for prefill, _ in found[1:]), tuple(decode for _, decode in found[1:]), model_bytes(model))
            for model, found in zip(models, seen, strict=True)]  # the first round warms up


def _once(model: Any, prompt: int, answer: int) -> tuple[float, float]:
    device = next(model.parameters()).device
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    start = _now(device)
    state = model(input_ids=tokens, use_cache=True, logits_to_keep=1) if _keeps(model) else model(input_ids=tokens, use_cache=True)
    middle = _now(device)
    for _ in range(answer):
        state = model(input_ids=state.logits[:, -1:].argmax(-1), past_key_values=state.past_key_values, use_cache=True)
    return prompt / (middle - start), answer / (_now(device) - middle)


@torch.no_grad()
def branch_seconds(model: nn.Module, anatomy: Anatomy, tokens: Int[Tensor, "samples length"], placement: Placement = Placement(),
                   repetitions: int = 5) -> dict[str, float]:
    """By sublayer site: the seconds of its block less those of the block without it, for the first sequence of `tokens`; the
    median over repetitions, after one that warms up. At least a microsecond."""
    found: dict[str, float] = {}
    with evaluating(model), ExitStack() as stack:
        states = enter(model, anatomy, tokens[:1], placement, 1, stack)

        def taken(module: nn.Module, depth: int) -> float:
            start = _now(states.device)
            states.run(module, depth, slice(0, 1))
            return _now(states.device) - start

        for depth, block in enumerate(anatomy.blocks):
            module = model.get_submodule(block.name)
            with placement.visiting(module):
                saved: dict[str, list[float]] = {site.name: [] for site in block.branches}
                for _ in range(repetitions + 1):
                    whole = taken(module, depth)
                    for site in block.branches:
                        with silenced(model, [site]):
                            saved[site.name].append(whole - taken(module, depth))
                states.advance(module, depth, block.name)
            found |= {name: max(statistics.median(values[1:]), _LEAST) for name, values in saved.items()}
    return found


def _keeps(model: Any) -> bool:
    """Whether the model can be asked for the last position's logits alone, as generation asks it."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


_RUN = """
import json, sys, xllamacpp
asked = json.loads(sys.argv[1])
servers = []
for file in asked["files"]:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = file, asked["context"], 1, asked["threads"]
    servers.append(xllamacpp.Server(settings))
seen = [[] for _ in servers]
for turn in range(asked["repetitions"] + 1):
    for server, found in zip(servers, seen):
        said = server.handle_completions({"prompt": asked["prompt"], "n_predict": asked["answer"], "temperature": 0, "ignore_eos": True,
                                          "cache_prompt": False})
        said = said[0] if isinstance(said, list) else said
        found.append((said["timings"]["prompt_per_second"], said["timings"]["predicted_per_second"]))
with open(sys.argv[2], "w") as file:
    json.dump([found[1:] for found in seen], file)
"""


def in_llama_cpp(files: Sequence[Path], prompt: int = 256, answer: int = 32, repetitions: int = 5, threads: int = 1) -> list[Speed]:
    """By llama.cpp's own clock, in a process of its own, which ends when a file is wrong. Raises MissingExtra, LoadError."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("speed in llama.cpp", "llamacpp")
    for file in files:
        if not file.is_file():
            raise LoadError(f"model '{file}': no such file.")
    asked = {"files": [str(file) for file in files], "context": prompt + answer + 8, "threads": threads, "repetitions": repetitions,
             "prompt": [1 + place % 100 for place in range(prompt)], "answer": answer}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        ran = subprocess.run([sys.executable, "-c", _RUN, json.dumps(asked), str(found)], capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = next((line for line in ran.stderr.splitlines() if "error" in line.lower()), f"it ended with {ran.returncode}")
            raise LoadError(f"llama.cpp cannot run {', '.join(map(str, files))}: {reason.strip()}")
        rounds = json.loads(found.read_text())
    return [Speed(tuple(prefill for prefill, _ in done), tuple(decode for _, decode in done), file.stat().st_size)
            for file, done in zip(files, rounds, strict=True)]
