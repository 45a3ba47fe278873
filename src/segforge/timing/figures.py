"""Figures of an engine: three latencies, never mixed, and throughput apart from them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segforge.config.engine import Benchmark
from segforge.datasets.core.index import Sample
from segforge.engines.engine import Engine
from segforge.machine.watch import CpuWatch, GpuWatch
from segforge.process import usable_cores
from segforge.runtimes.core.base import Runner
from segforge.timing import measure
from segforge.timing.verdict import Circumstances, coefficient_of_variation, percentiles, reasons_against

COLUMNS = (
    *("batch", "quantity", "p50_ms", "p90_ms", "p99_ms", "n", "throughput_fps"),
    *("limit_ms", "limit_fraction", "cov", "valid", "reasons"),
)


def stream_threads(settings: Benchmark) -> int:
    """The threads of each of the streams of a throughput: its share of the cores."""
    return max(1, usable_cores() // settings.streams)


@dataclass(frozen=True)
class Figure:
    """One quantity at one batch, before it is judged."""

    batch: int
    quantity: str
    seconds: Sequence[float]  # of each run; empty for throughput
    n: int
    run_s: float  # per run: the mean, or the time between two results of all streams
    circumstances: Circumstances
    record: dict[str, Any]


def time_latencies(
    engine: Engine, settings: Benchmark, runner: Runner, samples: Sequence[Sample], batch: int, limit: float
) -> list[Figure]:
    """The three latencies at `batch` on an open runner of `engine`."""
    figures = []
    for quantity, work in measure.latencies(runner, engine.passport, samples, batch).items():
        # Images differ in the time that they take to decode: a spread there is not the machine's.
        steady = quantity != "end_to_end"
        spent, settled = measure.warm_up(work, settings)
        if isinstance(work, measure.EndToEnd):
            work.parts = dict.fromkeys(work.parts, 0.0)  # the warm-up does not count
        with CpuWatch() as cpu, GpuWatch(engine.source.uuid) as gpu:
            seconds = measure.samples_of(work, settings)
        circumstances = Circumstances(settled or not steady, steady, cpu.others, gpu.throttled(), limit_ms=limit)
        mean = statistics.fmean(seconds)
        spread = {"min_ms": min(seconds), "mean_ms": mean, "max_ms": max(seconds), "sd_ms": statistics.pstdev(seconds)}
        shown = {name: round(value * 1000, 4) for name, value in spread.items()}
        record = {"warmup_s": round(spent, 3), "settled": settled, **shown, **cpu.record(), **gpu.record()}
        if isinstance(work, measure.EndToEnd):
            total = sum(work.parts.values())
            record |= {f"{name}_share": round(part / total, 4) for name, part in work.parts.items()}
        figures.append(Figure(batch, quantity, seconds, len(seconds), mean, circumstances, record))
    return figures


def time_throughput(
    engine: Engine, settings: Benchmark, runners: Sequence[Runner], samples: Sequence[Sample], batch: int, limit: float
) -> Figure:
    """Images a second at `batch` with the open `runners` of `engine` side by side, each with its share of the cores."""
    with CpuWatch() as cpu, GpuWatch(engine.source.uuid) as gpu:
        n, run_s = measure.throughput(runners, engine.passport, samples, batch, settings)
    circumstances = Circumstances(steady=False, others=cpu.others, throttled=gpu.throttled(), limit_ms=limit)
    record = {"streams": len(runners), "threads_per_stream": stream_threads(settings), **cpu.record(), **gpu.record()}
    return Figure(batch, "throughput", (), n, run_s, circumstances, record)


def judged(settings: Benchmark, figure: Figure) -> dict[str, Any]:
    """The figure as a row of sweep.csv."""
    circumstances, run_ms = figure.circumstances, figure.run_s * 1000
    cov = coefficient_of_variation(figure.seconds)
    reasons = reasons_against(
        figure.n, run_ms, cov, circumstances, min_samples=settings.min_samples, max_cov=settings.max_cov
    )
    timed = {name: value and round(value, 4) for name, value in percentiles(figure.seconds).items()}
    row: dict[str, Any] = {"batch": figure.batch, "quantity": figure.quantity, **timed, "n": figure.n}
    row |= {"throughput_fps": round(figure.batch / figure.run_s, 3), "cov": cov and round(cov, 5)}
    row |= {"valid": "false" if reasons else "true", "reasons": "; ".join(reasons)}
    if circumstances.limit_ms is not None and figure.quantity != "end_to_end":  # the host's work has no ceiling here
        # Significant digits: the limit of a small engine is far below its time, and must not round to nothing.
        fraction = circumstances.limit_ms / (timed["p50_ms"] or run_ms)
        row |= {"limit_ms": float(f"{circumstances.limit_ms:.4g}"), "limit_fraction": float(f"{fraction:.4g}")}
    return row
