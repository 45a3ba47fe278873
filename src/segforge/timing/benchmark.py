"""Time the engine that was scored: three quantities, never mixed, and throughput apart from latency."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from segforge.config import EngineConfig
from segforge.datasets.base import Sample, load_index
from segforge.files import read_json, write_csv, write_json
from segforge.onnx.metadata import OnnxMetadata, load_onnx
from segforge.progress import say
from segforge.runtimes.base import Runner, usable_cores
from segforge.runtimes.build import engine_metadata, open_engine, paths_of, read_manifest
from segforge.scores.evaluate import outputs_digest, require_batches
from segforge.timing import measure
from segforge.timing.ceilings import read_ceilings
from segforge.timing.limit import layer_limits, limit_ms
from segforge.timing.state import CpuWatch, GpuWatch
from segforge.timing.verdict import Circumstances, coefficient_of_variation, percentiles, reasons_against

COLUMNS = (
    *("batch", "quantity", "p50_ms", "p90_ms", "p99_ms", "n", "throughput_fps"),
    *("limit_ms", "limit_fraction", "cov", "valid", "reasons"),
)
LAYER_COLUMNS = ("node", "operator", "mflop", "mib", "limit_us")


@dataclass(frozen=True)
class Figure:
    """One quantity at one batch, before it is judged."""

    batch: int
    quantity: str
    seconds: Sequence[float]  # of each run; empty for throughput
    n: int
    run_s: float  # per run: the mean, or the time between two results of all streams
    seen: Circumstances
    record: dict[str, Any]


def time_latencies(
    config: EngineConfig, runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int, limit: float
) -> list[Figure]:
    """The three latencies at `batch` on an open runner."""
    settings = config.benchmark
    figures = []
    for quantity, work in measure.latencies(runner, metadata, samples, batch).items():
        # Images differ in the time that they take to decode: a spread there is not the machine's.
        steady = quantity != "end_to_end"
        spent, settled = measure.warm_up(work, settings)
        if isinstance(work, measure.EndToEnd):
            work.parts = dict.fromkeys(work.parts, 0.0)  # the warm-up does not count
        with CpuWatch() as cpu, GpuWatch(runner.device_kind == "gpu") as gpu:
            seconds = measure.samples_of(work, settings)
        seen = Circumstances(
            settled=settled or not steady,
            steady=steady,
            others=cpu.others,
            throttled=gpu.throttled(),
            limit_ms=limit,
        )
        mean = statistics.fmean(seconds)
        spread = {"min_ms": min(seconds), "mean_ms": mean, "max_ms": max(seconds), "sd_ms": statistics.pstdev(seconds)}
        record = {
            "warmup_s": round(spent, 3),
            "settled": settled,
            **{name: round(value * 1000, 4) for name, value in spread.items()},
            **cpu.record(),
            **gpu.record(),
        }
        if isinstance(work, measure.EndToEnd):
            total = sum(work.parts.values())
            record |= {f"{name}_share": round(part / total, 4) for name, part in work.parts.items()}
        figures.append(Figure(batch, quantity, seconds, len(seconds), mean, seen, record))
    return figures


def time_throughput(
    config: EngineConfig, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int, limit: float
) -> Figure:
    """Images a second at `batch` with `streams` runners side by side, each with its share of the cores."""
    streams, on_gpu = config.benchmark.streams, config.target.device.kind == "gpu"
    threads = max(1, usable_cores() // streams)
    with CpuWatch() as cpu, GpuWatch(on_gpu) as gpu:
        n, run_s = measure.throughput(lambda: open_engine(config, threads), metadata, samples, batch, config.benchmark)
    seen = Circumstances(steady=False, others=cpu.others, throttled=gpu.throttled(), limit_ms=limit)
    record = {"streams": streams, "threads_per_stream": threads, **cpu.record(), **gpu.record()}
    return Figure(batch, "throughput", (), n, run_s, seen, record)


def judged(config: EngineConfig, figure: Figure) -> dict[str, Any]:
    """The figure as a row of sweep.csv."""
    settings, seen = config.benchmark, figure.seen
    cov = coefficient_of_variation(figure.seconds)
    reasons = reasons_against(
        figure.n, figure.run_s * 1000, cov, seen, min_samples=settings.min_samples, max_cov=settings.max_cov
    )
    timed = {name: value and round(value, 4) for name, value in percentiles(figure.seconds).items()}
    row = {
        "batch": figure.batch,
        "quantity": figure.quantity,
        **timed,
        "n": figure.n,
        "throughput_fps": round(figure.batch / figure.run_s, 3),
        "cov": cov and round(cov, 5),
        "valid": "false" if reasons else "true",
        "reasons": "; ".join(reasons),
    }
    if seen.limit_ms is not None and figure.quantity != "end_to_end":  # the host's work has no ceiling here
        # Significant digits: the limit of a small engine is far below its time, and must not round to nothing.
        fraction = seen.limit_ms / (timed["p50_ms"] or figure.run_s * 1000)
        row |= {"limit_ms": float(f"{seen.limit_ms:.4g}"), "limit_fraction": float(f"{fraction:.4g}")}
    return row


def _command(config: EngineConfig) -> str:
    chosen = "" if config.benchmark.name == "default" else f" benchmark={config.benchmark.name}"
    return paths_of(config).command("benchmark") + chosen


def benchmark(config: EngineConfig) -> None:
    """Time the built engine at every configured batch and write its figures, sweep, layers and record.

    Outputs are compared with the scored run on the runner of the latencies; those of the throughput are
    of the same engine with fewer threads each, and share the verdict.

    Raises `SegforgeError` for a batch outside the engine's range, an engine that `open_engine`
    refuses, and missing ceilings or scores.
    """
    paths, settings = paths_of(config), config.benchmark
    metadata, batches = engine_metadata(config), sorted(set(settings.batches))
    require_batches(batches, metadata)
    scored = read_json(paths.detail("evaluate", "outputs.json"), made_by=paths.command("evaluate"))
    ceilings = read_ceilings(config.target.device.kind)
    model = load_onnx(paths.typed, made_by=paths.command("quantize"))
    layers = {batch: layer_limits(model, batch, config.precision.name, ceilings) for batch in batches}
    limits = {batch: limit_ms(found) for batch, found in layers.items()}
    split = load_index(metadata.dataset).split(metadata.task, metadata.score_split)
    samples = split[: settings.images]
    manifest = read_manifest(paths)
    say(f"benchmark: {paths.engine} at batch {', '.join(map(str, batches))} -> {paths.metrics('benchmark')}")

    figures: list[Figure] = []
    outputs: dict[int, str] = {}
    with open_engine(config) as runner:
        for batch in batches:
            found = time_latencies(config, runner, metadata, samples, batch, limits[batch])
            expected = scored["sha256"].get(str(batch))
            digest = outputs_digest(runner, metadata, split, batch, scored["images"]) if expected else None
            outputs[batch] = "unscored" if digest is None else "same" if digest == expected else "differ"
            figures += found
            shown = ", ".join(f"{f.quantity} {statistics.median(f.seconds) * 1000:.2f} ms" for f in found)
            say(f"  batch {batch}: {shown}; limit {limits[batch]:.2f} ms; outputs {outputs[batch]}")
    # Once the latency runner is gone: its threads would take cores from the streams.
    for batch in batches:
        figure = time_throughput(config, metadata, samples, batch, limits[batch])
        figures.append(figure)
        say(f"  batch {batch}: {batch / figure.run_s:.1f} images/s with {settings.streams} streams")

    rows = []
    for figure in sorted(figures, key=lambda f: f.batch):
        rows.append(judged(config, replace(figure, seen=replace(figure.seen, outputs=outputs[figure.batch]))))
    first = next(row for row in rows if row["quantity"] == "compute")
    fastest = max((row for row in rows if row["quantity"] == "throughput"), key=lambda row: row["throughput_fps"])
    for row in rows:
        if row["reasons"]:
            say(f"  not valid: batch {row['batch']} {row['quantity']}: {row['reasons']}")
    write_csv(paths.detail("benchmark", "sweep.csv"), COLUMNS, rows)
    write_csv(paths.detail("benchmark", "layers.csv"), LAYER_COLUMNS, (layer.row() for layer in layers[batches[0]]))
    write_json(
        paths.detail("benchmark", "record.json"),
        {
            **{name: manifest[name] for name in ("engine_sha256", "onnx_sha256", "flags", "versions", "device")},
            "height": metadata.height,
            "width": metadata.width,
            "command": _command(config),
            "streams": settings.streams,
            "ceilings": {"gflops": ceilings.gflops, "copy_gib_s": ceilings.copy_gib_s},
            "figures": [{"batch": f.batch, "quantity": f.quantity, **f.record} for f in figures],
        },
    )
    write_json(
        paths.metrics("benchmark"),
        {
            "latency_ms": {"p50": first["p50_ms"]},
            "throughput_fps": fastest["throughput_fps"],
            "limit_fraction": first["limit_fraction"],
            "valid": first["valid"] == fastest["valid"] == "true",
            "engine_sha256": manifest["engine_sha256"],
        },
    )
    say(f"benchmark: wrote {paths.metrics('benchmark')}, {paths.detail('benchmark', 'sweep.csv')} and its neighbours")
