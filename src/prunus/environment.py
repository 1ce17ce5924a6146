"""Where a number was measured, and how long it took."""

import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = [
    "Clock", "available_bytes", "environment", "forget_peak", "machine", "peak_bytes", "release_memory", "return_memory", "reuse_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's settings, from malloc.h


class Clock:
    """Seconds by stage of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage = ""  # the one that runs now, the innermost
        self._apart = 0.0  # of stages that were timed apart

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start, before, around = time.perf_counter(), self._apart, self.stage
        self.stage = name
        try:
            yield
        finally:
            self.stage = around
            seconds = time.perf_counter() - start - (self._apart - before)
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """A stage within another one, whose seconds do not count for that one."""
        start = time.perf_counter()
        try:
            with self(name):
                yield
        finally:
            self._apart += time.perf_counter() - start


def environment(model: Any, device: str, source: str = "") -> dict[str, str]:
    """Versions, machine, model and the memory that this process has needed at most."""
    found = {"model": source or getattr(model.config, "_name_or_path", "") or model.config.model_type,
             "class": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch."), "device": device, **machine()}
    found["peak resident memory"] = f"{peak_bytes() / 2**20:.0f} MiB"
    return found


def machine() -> dict[str, str]:
    """Versions, and what computes."""
    found = {}
    for package in ("prunus", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "python": platform.python_version(),
            "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"}


def peak_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> bool:
    """Let `peak_bytes` begin again from what is resident now; gives back whether the system can (Linux can)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def available_bytes() -> int:
    """The memory that can be taken without taking it from another process; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30


def reuse_memory() -> None:
    """Let glibc's allocator keep freed tensors of up to 32 MiB for the next ones, until `release_memory`.

    By default each comes from the system and goes back to it, and the system clears its pages every time.
    """
    _set({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 256 << 20})  # the most that all versions accept


def return_memory() -> None:
    """Let glibc's allocator give freed tensors of 4 MiB or more back at once.

    By default it begins to keep them as soon as one was freed, and tensors of many sizes, as of sub-networks, leave holes between them.
    """
    _set({_MMAP_THRESHOLD: 4 << 20})


def _set(values: Mapping[int, int]) -> None:
    with suppress(OSError, AttributeError):  # another allocator
        for name, value in values.items():
            ctypes.CDLL(None).mallopt(name, value)


def release_memory() -> None:
    """Give freed memory back to the system; glibc's allocator keeps the holes that blocks of tensors leave."""
    with suppress(OSError, AttributeError):  # another allocator
        ctypes.CDLL(None).malloc_trim(0)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
