"""How much energy the machine has used, where it says so: counters of Intel's and AMD's processors, and of NVIDIA's GPUs."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Counter", "Energy", "counters"]

_ZONES = Path("/sys/class/powercap")
_EVERY = 30.0  # seconds between looks: counters of processors begin again after a quarter of an hour of hard work or later


@dataclass(frozen=True)
class Counter:
    """A number of joules that only grows, until it begins again."""

    name: str  # what the energy is of
    read: Callable[[], float]  # in joules
    period: float = 0.0  # joules after which it begins again; 0: it does not


def counters(device: str = "cpu", zones: Path = _ZONES) -> tuple[Counter, ...]:
    """What can be read here, which may be nothing: processors and memory with RAPL through the kernel's powercap, where the user may
    read it, and the GPU that computes through NVIDIA's driver."""
    return (*_processors(zones), *(_gpu(torch.device(device)) if torch.device(device).type == "cuda" else ()))


def _processors(zones: Path) -> list[Counter]:
    """Whole packages, and the memory that is counted apart from them; other zones are parts of these, or hold them."""
    found = []
    for zone in sorted(zones.glob("intel-rapl*:*")) if zones.is_dir() else []:
        try:
            name = (zone / "name").read_text().strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            period = float((zone / "max_energy_range_uj").read_text()) / 1e6
            counter = Counter("processors" if name != "dram" else "memory", lambda zone=zone: float(  # type: ignore[misc]
                (zone / "energy_uj").read_text()) / 1e6, period)
            counter.read()
        except (OSError, ValueError):
            continue  # it is there, but not for this user
        found.append(counter)
    return found


def _gpu(device: torch.device) -> tuple[Counter, ...]:
    """The GPU's own counter, in millijoules since the driver was loaded; GPUs before Volta have none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(identity, ctypes.byref(handle)):
            return ()

        def read() -> float:
            failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
            return float("nan") if failed else value.value / 1e3

        return (Counter("GPU", read),) if read() == read() else ()
    except (OSError, AttributeError, RuntimeError):
        return ()


class Energy:
    """Joules that some counters have counted since this was made."""

    def __init__(self, found: tuple[Counter, ...]) -> None:
        self.joules: dict[str, float] = {counter.name: 0.0 for counter in found}
        self._last = {counter: counter.read() for counter in found}
        self._looked = time.monotonic()

    def look(self, now: bool = False) -> None:
        """Count on, if it is time to or must be `now`: a counter must not begin again twice between two looks."""
        if not now and time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        for counter, before in self._last.items():
            self._last[counter] = value = counter.read()
            self.joules[counter.name] += value - before + (counter.period if value < before else 0.0)
