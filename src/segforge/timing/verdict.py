"""When a figure may be believed: percentiles that its samples support, and the reasons against it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segforge.machine.watch import MAX_OTHERS

# Samples below which a percentile is left empty: ten in all for the median, ten beyond p90 and p99. That is
# far fewer than MLPerf's 24,576 and 270,336 for 99 % confidence, so read them with that in mind.
SUPPORT = {"p50_ms": (50, 10), "p90_ms": (90, 100), "p99_ms": (99, 1000)}
WINDOW_S = 0.05  # some ticks of an operating system's scheduler


@dataclass(frozen=True)
class Circumstances:
    """What was known about a run when its figure was judged."""

    settled: bool = True  # the warm-up ended because two windows agreed
    steady: bool = True  # the same work each time, so that a spread is the machine's and not the data's
    others: float = 0.0  # share of the cores that other processes took
    throttled: Sequence[str] = ()  # of a GPU
    outputs: str = "same"  # of the timed run: same, differ, or unscored (no hash at this batch)
    limit_ms: float | None = None  # of one run


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50_ms, p90_ms and p99_ms of the samples in milliseconds; None where there are too few of them."""
    return {
        name: float(np.percentile(seconds, q)) * 1000 if len(seconds) >= needed else None
        for name, (q, needed) in SUPPORT.items()
    }


def coefficient_of_variation(seconds: Sequence[float]) -> float | None:
    """Standard deviation over mean of consecutive windows of runs; None below two windows.

    A window lasts `WINDOW_S`, or a tenth of all runs if that is less; a longer run is a window of its own. Nothing is
    clipped: one interrupt in a run of 0.2 ms is no finding about the machine, a tenth of a second that was slower is.
    """
    length = min(WINDOW_S, sum(seconds) / 10)
    windows: list[float] = []
    window: list[float] = []
    for run in seconds:
        window.append(run)
        if sum(window) >= length:
            windows.append(statistics.fmean(window))
            window = []
    return statistics.stdev(windows) / statistics.fmean(windows) if len(windows) > 1 else None


def reasons_against(
    n: int, run_ms: float, cov: float | None, circumstances: Circumstances, *, min_samples: int, max_cov: float
) -> list[str]:
    """Why a figure of `n` samples and `run_ms` per run is not valid; empty when it is."""
    seen, spread = circumstances, cov or 0.0
    reasons = {
        f"{n} samples of at least {min_samples}": n < min_samples,
        f"coefficient of variation {spread:.1%} over {max_cov:.1%}": seen.steady and spread > max_cov,
        "warm-up did not settle": not seen.settled,
        f"other processes took {seen.others:.0%} of the cores": seen.others > MAX_OTHERS,
        f"GPU slowed down, or was not watched: {' '.join(seen.throttled)}": seen.throttled,
        "this batch was not scored": seen.outputs == "unscored",
        "outputs differ from the scored run": seen.outputs not in ("same", "unscored"),
        "faster than the limit: the ceilings were measured too low": run_ms < (seen.limit_ms or 0.0),
    }
    return [reason for reason, holds in reasons.items() if holds]
