"""Joules are read where the machine counts them, also when a counter begins again, and nothing is said where it does not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunus.energy import Counter, Energy, counters


def zone(folder: Path, name: str, joules: float) -> Path:
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", str(int(joules * 1e6))), ("max_energy_range_uj", str(262_143_328_850))):
        (folder / file).write_text(text + "\n")
    return folder


def test_packages_and_memory_are_read_and_not_what_they_hold_or_what_holds_them(tmp_path: Path) -> None:
    package = zone(tmp_path / "intel-rapl:0", "package-0", 10.0)
    zone(tmp_path / "intel-rapl:1", "package-1", 5.0)
    zone(tmp_path / "intel-rapl:0:0", "core", 3.0)
    zone(tmp_path / "intel-rapl:0:1", "dram", 2.0)
    zone(tmp_path / "intel-rapl:2", "psys", 99.0)
    found = counters(zones=tmp_path)
    assert [(counter.name, counter.read()) for counter in found] == [("processors", 10.0), ("memory", 2.0), ("processors", 5.0)]
    energy = Energy(found)
    (package / "energy_uj").write_text("14000000\n")
    energy.look()
    assert energy.joules == {"processors": 0.0, "memory": 0.0}  # not yet time to look
    energy.look(now=True)
    assert energy.joules == {"processors": 4.0, "memory": 0.0}


def test_what_may_not_be_read_is_not_there(tmp_path: Path) -> None:
    broken = zone(tmp_path / "intel-rapl:0", "package-0", 10.0)
    (broken / "energy_uj").unlink()
    assert counters(zones=tmp_path) == counters(zones=tmp_path / "nowhere") == ()


def test_a_counter_that_begins_again_goes_on() -> None:
    values = iter([90.0, 95.0, 3.0])
    energy = Energy((Counter("processors", lambda: next(values), 100.0),))
    energy.look(now=True)
    energy.look(now=True)
    assert energy.joules == {"processors": pytest.approx(13.0)}


class Driver:
    """NVML as far as it is asked."""

    def __init__(self, known: bytes) -> None:
        self.known, self.millijoules = known, 5000

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, identity: bytes, handle: Any) -> int:  # noqa: N802
        return 0 if identity == self.known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:  # noqa: N802
        value._obj.value = self.millijoules
        return 0


def test_a_gpu_is_found_by_its_identity_and_read_in_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(b"GPU-abc")
    monkeypatch.setattr("prunus.energy.ctypes.CDLL", lambda name: driver)
    monkeypatch.setattr("prunus.energy.torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    energy = Energy(counters("cuda", tmp_path))
    driver.millijoules = 12_500
    energy.look(now=True)
    assert energy.joules == {"GPU": 7.5}
    driver.known = b"GPU-other"
    assert counters("cuda", tmp_path) == ()
