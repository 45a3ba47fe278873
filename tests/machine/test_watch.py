"""What else went on: other processes on the cores, and the readings of one GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest
from fake_nvml import Card, FakeNvml

from segforge.machine import watch
from segforge.machine.watch import CpuWatch, GpuWatch, busy_seconds, clock_mhz, core_numbers
from segforge.process import usable_cores

UUID = "GPU-1111"


def test_other_processes_are_seen() -> None:
    with CpuWatch() as seen:
        subprocess.run(
            [sys.executable, "-c", "import time; e = time.time() + .5\nwhile time.time() < e: pass"], check=True
        )
    assert seen.others > 0.02 + 0.2 / usable_cores()


def test_own_work_is_not_held_against_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "busy_seconds", time.process_time)
    with CpuWatch() as seen:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass
    assert seen.others == 0
    assert set(seen.record()) == {"others", "clock_mhz"}


def test_busy_is_what_the_usable_cores_worked_and_not_what_they_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    def core(**seconds: float) -> Any:
        return SimpleNamespace(_asdict=lambda: {**dict.fromkeys(("user", "system", "idle", "iowait"), 0.0), **seconds})

    cores = [
        core(user=1.0, nice=2.0, system=4.0, irq=8.0, softirq=16.0, steal=32.0),
        core(user=64.0, idle=500.0, iowait=500.0, guest=50.0, guest_nice=5.0),  # guests are in user already
        core(user=1000.0),
    ]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(watch, "core_numbers", lambda: [0, 2, 3])  # core 1 is offline
    monkeypatch.setattr(watch.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert busy_seconds() == 63 + 64
    monkeypatch.delattr(watch.os, "sched_getaffinity")
    assert busy_seconds() == 63 + 64 + 1000


def test_cores_have_the_numbers_of_the_kernel() -> None:
    numbers = list(islice(core_numbers(), psutil.cpu_count()))
    assert len(numbers) == psutil.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        assert os.sched_getaffinity(0) <= set(numbers)


def test_a_system_that_tells_no_clock_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    assert clock_mhz() is None
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2000.04))
    assert clock_mhz() == 2000.0


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Callable[[Card], None]:
    """Samples without the time between them; what is returned waits until a card has given all its readings."""
    monkeypatch.setattr(watch, "SAMPLE_S", 0.001)

    def wait(card: Card) -> None:
        end = time.monotonic() + 60
        while card.taken < len(card.readings) and time.monotonic() < end:
            time.sleep(0.001)

    return wait


def test_a_gpu_that_slows_down_is_seen(soon: Callable[[Card], None], monkeypatch: pytest.MonkeyPatch) -> None:
    slowdown = pynvml.nvmlClocksThrottleReasonHwSlowdown | pynvml.nvmlClocksThrottleReasonGpuIdle
    card = Card(uuid=UUID, readings=[(1980, 300_500, 60, 0), (1200, 250_000, 71, slowdown), (1500, 280_000, 65, 0)])
    nvml = FakeNvml(monkeypatch, Card(uuid="GPU-2222", readings=[(1, 1, 1, 0xFFFF)]), card)
    with GpuWatch(UUID) as seen:
        soon(card)
    assert seen.throttled() == ["hw_slowdown"]
    assert seen.record() == {
        "gpu": UUID,
        "clock_sm_mhz": [1200.0, 1980.0],
        "power_w": [250.0, 300.5],
        "temperature_c": [60.0, 71.0],
        "throttled": ["hw_slowdown"],
    }
    assert nvml.open == 0
    assert nvml.cards[0].taken == 0
    with GpuWatch(None) as idle:
        pass
    assert idle.throttled() == []
    assert idle.record() == {}


def test_a_reading_that_a_card_does_not_support_is_only_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, Card(uuid=UUID))

    def unsupported(card: Card) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", unsupported)
    with GpuWatch(UUID) as seen:
        pass
    assert seen.throttled() == []
    assert set(seen.record()) == {"gpu", "clock_sm_mhz", "temperature_c", "throttled"}


@pytest.mark.parametrize(
    ("bit", "reason"),
    [
        ("SwPowerCap", ["sw_power_cap"]),
        ("HwSlowdown", ["hw_slowdown"]),
        ("SwThermalSlowdown", ["sw_thermal_slowdown"]),
        ("HwThermalSlowdown", ["hw_thermal_slowdown"]),
        ("GpuIdle", []),
        ("ApplicationsClocksSetting", []),
        ("None", []),
    ],
)
def test_each_reason_for_a_lower_clock(monkeypatch: pytest.MonkeyPatch, bit: str, reason: list[str]) -> None:
    mask = getattr(pynvml, f"nvmlClocksThrottleReason{bit}")
    FakeNvml(monkeypatch, Card(uuid=UUID, readings=[(1980, 300_500, 60, mask)]))
    with GpuWatch(UUID) as seen:
        pass
    assert seen.throttled() == reason
    assert len(seen.samples) >= 1  # however short the watch


def test_a_gpu_that_gives_no_sample_is_not_taken_for_a_steady_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, uuid in (
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, UUID),  # no driver
        (0, "GPU-gone"),  # no such card
    ):
        nvml = FakeNvml(monkeypatch, Card(uuid=UUID))
        nvml.error = error
        with GpuWatch(uuid) as blind:
            pass
        assert blind.throttled() == ["no sample from NVML"]
        assert blind.record() == {"gpu": uuid, "throttled": ["no sample from NVML"]}
        assert nvml.open == 0


@pytest.mark.filterwarnings("error")  # a thread that dies says so with a traceback on the terminal
def test_a_gpu_that_stops_answering_is_seen(soon: Callable[[Card], None], monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(uuid=UUID)
    nvml = FakeNvml(monkeypatch, card)
    with GpuWatch(UUID) as seen:
        soon(card)
        nvml.error = pynvml.NVML_ERROR_GPU_IS_LOST
        seen._thread.join(60)
    assert seen.throttled() == [str(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))]
    assert seen.record()["clock_sm_mhz"] == [1980.0, 1980.0]
