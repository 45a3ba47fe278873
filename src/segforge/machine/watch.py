"""What else went on while a figure was taken: other processes, clocks, and why a GPU slowed down."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import psutil

from segforge.machine.identity import nvml
from segforge.process import usable_cores

MAX_OTHERS = 0.05  # share of the usable cores that other processes may take beside a valid figure
TICK_S = 0.01  # in which the kernel counts a core's work
SAMPLE_S = 0.2
IDLE = ("idle", "iowait", "guest", "guest_nice")  # of psutil's times; guests are counted as user already
# NVML's reasons for a lower clock that say something about the figure.
THROTTLE = {
    "sw_power_cap": "nvmlClocksThrottleReasonSwPowerCap",
    "hw_slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "sw_thermal_slowdown": "nvmlClocksThrottleReasonSwThermalSlowdown",
    "hw_thermal_slowdown": "nvmlClocksThrottleReasonHwThermalSlowdown",
}
# What a sample holds, from `pynvml` and a card; what a card does not support is missing.
READINGS: dict[str, Callable[[Any, Any], float]] = {
    "clock_sm_mhz": lambda nvml, card: float(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
    "power_w": lambda nvml, card: float(nvml.nvmlDeviceGetPowerUsage(card) / 1000),
    "temperature_c": lambda nvml, card: float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)),
}


def core_numbers() -> Iterable[int]:
    """The kernel's numbers of the cores that psutil lists: a core that is offline is in neither list."""
    stat = Path("/proc/stat")
    return map(int, re.findall(r"^cpu(\d+)", stat.read_text(), re.MULTILINE)) if stat.is_file() else count()


def busy_seconds() -> float:
    """Seconds that the usable cores have worked since the system started, for anyone."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    times = zip(core_numbers(), psutil.cpu_times(percpu=True), strict=False)
    worked = [one._asdict() for core, one in times if not usable or core in usable]
    return float(sum(seconds for one in worked for kind, seconds in one.items() if kind not in IDLE))


def clock_mhz() -> float | None:
    """The clock of the cores now, in MHz; None where the system does not tell."""
    found = psutil.cpu_freq()
    return round(found.current, 1) if found else None


class CpuWatch:
    """Around a measurement: `others` is the share of the usable cores that other processes took (0..1)."""

    others = 0.0

    def __enter__(self) -> Self:
        self._start = (time.perf_counter(), busy_seconds(), time.process_time())
        self._clock = clock_mhz()
        return self

    def __exit__(self, *_error: object) -> None:
        start, busy_before, own_before = self._start
        wall = time.perf_counter() - start
        others = (busy_seconds() - busy_before) - (time.process_time() - own_before)
        others -= usable_cores() * TICK_S  # over a short window one tick per core is no finding
        self.others = min(1.0, max(0.0, others / (wall * usable_cores())))

    def record(self) -> dict[str, Any]:
        """For record.json."""
        return {"others": round(self.others, 4), "clock_mhz": [self._clock, clock_mhz()]}


class GpuWatch:
    """Around a measurement: samples of a card's `READINGS` and reasons for a lower clock; `uuid` None: of nothing."""

    def __init__(self, uuid: str | None) -> None:
        self._uuid = uuid
        self._stop = threading.Event()
        self.samples: list[dict[str, float]] = []
        self.reasons: set[str] = set()

    def __enter__(self) -> Self:
        if self._uuid:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
            while not self.samples and self._thread.is_alive():  # no watch without a sample
                self._thread.join(0.001)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._uuid:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        with nvml() as library:
            if library is None:
                return
            try:
                card = library.nvmlDeviceGetHandleByUUID(self._uuid)
                while not self._stop.is_set():
                    self._sample(library, card)
                    self._stop.wait(SAMPLE_S)
            except library.NVMLError as error:  # such as a card that fell off the bus
                self.reasons.add(str(error))

    def _sample(self, library: Any, card: Any) -> None:
        mask = library.nvmlDeviceGetCurrentClocksThrottleReasons(card)
        self.reasons |= {name for name, bit in THROTTLE.items() if mask & getattr(library, bit)}
        sample = {}
        for name, read in READINGS.items():
            with suppress(library.NVMLError_NotSupported):
                sample[name] = read(library, card)
        self.samples.append(sample)

    def throttled(self) -> list[str]:
        """The reasons for a lower clock that were active in any sample, or why the card was not watched."""
        if self._uuid and not self.samples:
            return ["no sample from NVML"]
        return sorted(self.reasons)

    def record(self) -> dict[str, Any]:
        """For record.json: the card, the range of each reading, and the reasons."""
        if not self._uuid:
            return {}
        taken = {name: [sample[name] for sample in self.samples if name in sample] for name in READINGS}
        ranges = {name: [min(values), max(values)] for name, values in taken.items() if values}
        return {"gpu": self._uuid, **ranges, "throttled": self.throttled()}
