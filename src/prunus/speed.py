"""How fast models are, measured in turn, and how much memory they take: in PyTorch, and in llama.cpp for GGUF files."""

import importlib.util
import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .errors import LoadError, MissingExtra, RecipeError
from .traits import model_bytes, predicts_next
from .widening import as_it_is

__all__ = ["NUMBERS", "Timing", "in_llama_cpp", "in_pytorch", "in_turn", "memory_in_llama_cpp", "memory_in_pytorch", "now", "ratio"]


@dataclass(frozen=True)
class Timing:
    """What one model did, once per repetition; the k-th repetition of all models was in the same round."""

    prefill: tuple[float, ...]  # tokens of the prompt per second
    first: tuple[float, ...]  # seconds until the first token of the answer is known
    decode: tuple[float, ...]  # tokens of the answer per second, one sequence, with the cache
    bytes: int  # of the weights: in memory (PyTorch), or of the file (llama.cpp)


# What is said of rounds: label, unit, which values are better, and the value of every round.
NUMBERS: tuple[tuple[str, str, Literal["lower", "higher"], Callable[[Timing], tuple[float, ...]]], ...] = (
    ("tokens read per second", "tokens/s", "higher", lambda timing: timing.prefill),
    ("milliseconds to the first token", "ms", "lower", lambda timing: tuple(1000 * first for first in timing.first)),
    ("tokens written per second", "tokens/s", "higher", lambda timing: timing.decode))

_Round = tuple[float, float, float]  # the first three, once


@as_it_is()
def in_turn(runs: Sequence[Callable[[], Any]], device: torch.device, repetitions: int) -> list[float]:
    """The median seconds of each run over rounds, in which every run has one turn, so that what the machine does beside falls on all
    alike. A round before them warms up."""
    seen: list[list[float]] = [[] for _ in runs]
    for _ in range(repetitions + 1):
        for run, taken in zip(runs, seen, strict=True):
            start = now(device)
            run()
            taken.append(now(device) - start)
    return [statistics.median(taken[1:]) for taken in seen]


def ratio(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """The median over rounds of other / base, with the least and the most."""
    found = [mine / theirs for theirs, mine in zip(base, other, strict=True)]
    return statistics.median(found), min(found), max(found)


@as_it_is()
@torch.no_grad()
def in_pytorch(models: Sequence[Any], prompt: int = 256, answer: int = 32, repetitions: int = 5,
               watch: Callable[[int, int], None] | None = None) -> list[Timing]:
    """Tokens are random: speed does not depend on them. Raises RecipeError for a model that predicts no next token."""
    for model in models:
        if not predicts_next(model):
            raise RecipeError(f"speed: {type(model).__name__} does not predict the next token.")
    seen: list[list[_Round]] = [[] for _ in models]
    for turn in range(repetitions + 1):
        for model, found in zip(models, seen, strict=True):
            found.append(_once(model, prompt, answer))
        if watch:
            watch(turn + 1, repetitions + 1)
    return [_timing(found[1:], model_bytes(model)) for model, found in zip(models, seen, strict=True)]  # the first round warms up


def _timing(rounds: Sequence[_Round], size: int) -> Timing:
    prefill, first, decode = zip(*rounds, strict=True)
    return Timing(prefill, first, decode, size)


def _once(model: Any, prompt: int, answer: int) -> _Round:
    device = next(model.parameters()).device
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)
    start = now(device)
    state = model(input_ids=tokens, use_cache=True, logits_to_keep=1) if _keeps(model) else model(input_ids=tokens, use_cache=True)
    token = state.logits[:, -1:].argmax(-1)
    middle = now(device)
    for _ in range(answer):
        state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
        token = state.logits[:, -1:].argmax(-1)
    return prompt / (middle - start), middle - start, answer / (now(device) - middle)


def _keeps(model: Any) -> bool:
    """Whether the model can be asked for the last position's logits alone, as generation asks it."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


_PEAK = """
import json, resource, sys
def peak():  # getrusage also counts the process that started this one
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""
_OPEN = _PEAK + """
import torch
from prunus.loading import load
from prunus.speed import in_pytorch
asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
model = load(asked["model"], dtype=asked["dtype"], device=asked["device"], trust_remote_code=asked["trust"]).model
in_pytorch([model], asked["prompt"], asked["answer"], 1)
on_gpu = asked["device"].startswith("cuda")
with open(sys.argv[2], "w") as file:
    json.dump(torch.cuda.max_memory_allocated(asked["device"]) if on_gpu else peak(), file)
"""
_RUN = _PEAK + """
import xllamacpp
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
        said = said["timings"]
        found.append((said["prompt_per_second"], said["prompt_ms"] / 1000, said["predicted_per_second"]))
with open(sys.argv[2], "w") as file:
    json.dump([[found[1:] for found in seen], peak()], file)
"""


def in_llama_cpp(files: Sequence[Path], prompt: int = 256, answer: int = 32, repetitions: int = 5, threads: int = 1) -> list[Timing]:
    """By llama.cpp's own clock, in a process of its own, which ends when a file is wrong. Raises MissingExtra, LoadError."""
    rounds, _ = _llama_cpp(files, prompt, answer, repetitions, threads)
    return [_timing(done, file.stat().st_size) for file, done in zip(files, rounds, strict=True)]


def memory_in_llama_cpp(file: Path, prompt: int = 256, answer: int = 32, threads: int = 1) -> int:
    """The peak resident memory, in bytes, of a process that opens the file and answers twice. Raises as `in_llama_cpp`."""
    _, peak = _llama_cpp([file], prompt, answer, 1, threads)
    return peak


def memory_in_pytorch(source: str, prompt: int = 256, answer: int = 32, threads: int = 1, dtype: str = "auto", device: str = "cpu",
                      trust_remote_code: bool = False) -> int:
    """The same of a process that loads a model in PyTorch; on a GPU, the peak of what is allocated there. Raises LoadError."""
    asked = {"model": source, "prompt": prompt, "answer": answer, "threads": threads, "dtype": dtype, "device": device,
             "trust": trust_remote_code}
    found: int = _in_a_process(_OPEN, asked, f"PyTorch cannot run {source}")
    return found


def _llama_cpp(files: Sequence[Path], prompt: int, answer: int, repetitions: int, threads: int) -> tuple[list[list[_Round]], int]:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("speed in llama.cpp", "llamacpp")
    for file in files:
        if not file.is_file():
            raise LoadError(f"model '{file}': no such file.")
    asked = {"files": [str(file) for file in files], "context": prompt + answer + 8, "threads": threads, "repetitions": repetitions,
             "prompt": [1 + place % 100 for place in range(prompt)], "answer": answer}
    rounds, peak = _in_a_process(_RUN, asked, f"llama.cpp cannot run {', '.join(map(str, files))}")
    return [[tuple(once) for once in done] for done in rounds], peak


def _in_a_process(code: str, asked: dict[str, Any], failure: str) -> Any:
    """What the code writes, as JSON, when it is told what is asked. Raises LoadError when it ends early."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        ran = subprocess.run([sys.executable, "-c", code, json.dumps(asked), str(found)], capture_output=True, text=True, check=False)
        if ran.returncode:
            said = (line for line in ran.stderr.splitlines() if "error" in line.lower() and not line.startswith(" "))
            reason = next(said, f"it ended with {ran.returncode}")
            raise LoadError(f"{failure}: {reason.strip()}")
        return json.loads(found.read_text())
