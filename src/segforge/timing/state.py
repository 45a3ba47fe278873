"""What else went on while a figure was taken: other processes, clocks, and why a GPU slowed down."""

import csv
import os
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from segforge.runtimes.base import usable_cores

MAX_OTHERS = 0.05  # share of the usable cores that other processes may take beside a valid figure
THROTTLE = ("sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown")
GPU_FIELDS = ("clocks.sm", "power.draw", "temperature.gpu", *(f"clocks_event_reasons.{name}" for name in THROTTLE))


def busy_seconds() -> float | None:
    """Seconds that the usable cores have worked since the system started, for anyone; None without /proc/stat."""
    if not Path("/proc/stat").is_file():
        return None
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, _idle, _iowait, *interrupts_and_steal = (int(f) for f in fields[:8])
            ticks += user + nice + system + sum(interrupts_and_steal)
    return ticks / os.sysconf("SC_CLK_TCK")


def clock_mhz() -> float | None:
    """The median clock of the cores now, in MHz; None where the system does not tell."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    found = [int(file.read_text()) / 1000 for file in files]
    if not found and Path("/proc/cpuinfo").is_file():
        found = [float(m) for m in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.M)]
    return round(statistics.median(found), 1) if found else None


class CpuWatch:
    """Around a measurement: `others` is the share of the usable cores that other processes took (0..1)."""

    others = 0.0

    def __enter__(self) -> Self:
        self._start = (time.perf_counter(), busy_seconds(), time.process_time())
        self._clock = clock_mhz()
        return self

    def __exit__(self, *_error: object) -> None:
        start, busy_before, own_before = self._start
        wall, busy = time.perf_counter() - start, busy_seconds()
        if busy is not None and busy_before is not None:
            others = (busy - busy_before) - (time.process_time() - own_before)
            # The kernel counts in ticks: over a short window one tick per core is no finding.
            others -= usable_cores() / os.sysconf("SC_CLK_TCK")
            self.others = min(1.0, max(0.0, others / (wall * usable_cores())))

    def record(self) -> dict[str, Any]:
        """For record.json."""
        return {"others": round(self.others, 4), "clock_mhz": [self._clock, clock_mhz()]}


class GpuWatch:
    """Around a measurement: samples of nvidia-smi's clocks, power, temperature and slowdown reasons."""

    def __init__(self, active: bool) -> None:
        self._active = active and shutil.which("nvidia-smi") is not None
        self.samples: list[list[str]] = []

    def __enter__(self) -> Self:
        if self._active:
            query = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
            self._process = subprocess.Popen([*query, "-lms", "200"], stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            self._first = self._process.stdout.readline()  # it takes a while to start: no watch without a sample
        return self

    def __exit__(self, *_error: object) -> None:
        if self._active:
            self._process.terminate()
            out, _ = self._process.communicate()
            rows = csv.reader([self._first, *out.splitlines()], skipinitialspace=True)
            self.samples = [row for row in rows if len(row) == len(GPU_FIELDS)]

    def throttled(self) -> list[str]:
        """The slowdown reasons that were active in any sample, or that there was none."""
        if self._active and not self.samples:
            return ["no sample from nvidia-smi"]
        first = len(GPU_FIELDS) - len(THROTTLE)
        return [name for i, name in enumerate(THROTTLE, first) if any(row[i] == "Active" for row in self.samples)]

    def record(self) -> dict[str, Any]:
        """For record.json: the range of each reading, and the reasons."""
        ranges: dict[str, Any] = {}
        for i, name in enumerate(GPU_FIELDS[: -len(THROTTLE)]):
            values = [float(row[i]) for row in self.samples if re.fullmatch(r"[\d.]+", row[i])]
            if values:
                ranges[name] = [min(values), max(values)]
        return {**ranges, "throttled": self.throttled()} if self._active else {}
