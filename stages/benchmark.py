"""Time the engine that was scored: python stages/benchmark.py variant=… target=cpu-openvino precision=int8."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from segforge.config.engine import EngineConfig
from segforge.datasets.core.index import Sample, load_index
from segforge.engines.engine import Engine
from segforge.evaluation import outputs_digest
from segforge.files import read_json, write_csv, write_json
from segforge.stage import run_stage
from segforge.terminal import say
from segforge.timing.figures import COLUMNS, Figure, judged, stream_threads, time_latencies, time_throughput
from segforge.timing.limit import Ceilings, layer_limits, limit_ms, read_ceilings

LAYER_COLUMNS = ("node", "operator", "mflop", "mib", "limit_us")


def benchmark(config: EngineConfig) -> None:
    """Time the built engine at every configured batch and write its figures, sweep, layers and record.

    Outputs are compared with the scored run on the runner of the latencies; those of the throughput are
    of the same engine with fewer threads each, and share the verdict. Raises `SegforgeError` for a batch
    outside the engine's range, an engine that is not what its manifest says, and missing ceilings or scores.
    """
    engine, settings = Engine.of(config), config.benchmark
    paths, passport, batches = engine.paths, engine.passport, sorted(set(settings.batches))
    passport.require_batches(batches)
    scored = read_json(paths.detail("evaluate", "outputs.json"), made_by=paths.command("evaluate"))
    ceilings = read_ceilings(config.target.device.name)
    layers = {batch: layer_limits(engine.source.model, batch, config.precision, ceilings) for batch in batches}
    limits = {batch: limit_ms(found) for batch, found in layers.items()}
    samples = load_index(passport.dataset).split(passport.task, passport.score_split)
    say(f"benchmark: {paths.engine} at batch {', '.join(map(str, batches))} -> {paths.metrics('benchmark')}")
    figures = timed(config, engine, samples, limits, scored)

    rows = [judged(settings, figure) for figure in figures]
    for row in rows:
        if row["reasons"]:
            say(f"  not valid: batch {row['batch']} {row['quantity']}: {row['reasons']}")
    write_csv(paths.detail("benchmark", "sweep.csv"), COLUMNS, rows)
    write_csv(paths.detail("benchmark", "layers.csv"), LAYER_COLUMNS, (layer.row() for layer in layers[batches[0]]))
    write_json(paths.detail("benchmark", "record.json"), record(config, engine, ceilings, figures))
    write_json(paths.metrics("benchmark"), summary(engine, rows))
    say(f"benchmark: wrote {paths.metrics('benchmark')}, {paths.detail('benchmark', 'sweep.csv')} and its neighbours")


def timed(
    config: EngineConfig, engine: Engine, split: list[Sample], limits: dict[int, float], scored: dict[str, Any]
) -> list[Figure]:
    """Every quantity at every batch of `limits`, by batch, each with what became of the outputs there."""
    settings = config.benchmark
    samples = split[: settings.images]
    figures: list[Figure] = []
    outputs: dict[int, str] = {}
    with engine.open() as runner:
        for batch, limit in limits.items():
            found = time_latencies(engine, settings, runner, samples, batch, limit)
            expected = scored["sha256"].get(str(batch))
            digest = outputs_digest(runner, engine.passport, split, batch, scored["images"]) if expected else None
            outputs[batch] = "unscored" if digest is None else "same" if digest == expected else "differ"
            figures += found
            shown = ", ".join(f"{f.quantity} {statistics.median(f.seconds) * 1000:.2f} ms" for f in found)
            say(f"  batch {batch}: {shown}; limit {limit:.2f} ms; outputs {outputs[batch]}")
    # Once the latency runner is gone: its threads would take cores from the streams.
    with ExitStack() as stack:
        streams = [stack.enter_context(engine.open(stream_threads(settings))) for _ in range(settings.streams)]
        for batch, limit in limits.items():
            figure = time_throughput(engine, settings, streams, samples, batch, limit)
            figures.append(figure)
            say(f"  batch {batch}: {batch / figure.run_s:.1f} images/s with {settings.streams} streams")
    by_batch = sorted(figures, key=lambda figure: figure.batch)
    return [replace(f, circumstances=replace(f.circumstances, outputs=outputs[f.batch])) for f in by_batch]


def record(config: EngineConfig, engine: Engine, ceilings: Ceilings, figures: Sequence[Figure]) -> dict[str, Any]:
    """The circumstances of the figures."""
    chosen = "" if config.benchmark.name == "default" else f" benchmark={config.benchmark.name}"
    return {
        **{name: engine.manifest[name] for name in ("engine_sha256", "onnx_sha256", "flags", "versions", "device")},
        "height": engine.passport.height,
        "width": engine.passport.width,
        "command": engine.paths.command("benchmark") + chosen,
        "streams": config.benchmark.streams,
        "ceilings": {"gflops": ceilings.gflops, "copy_gib_s": ceilings.copy_gib_s},
        "figures": [{"batch": f.batch, "quantity": f.quantity, **f.record} for f in figures],
    }


def summary(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The few figures that `dvc metrics` shows: of the smallest batch, and the highest throughput."""
    first = next(row for row in rows if row["quantity"] == "compute")
    fastest = max((row for row in rows if row["quantity"] == "throughput"), key=lambda row: row["throughput_fps"])
    return {
        "latency_ms": {"p50": first["p50_ms"]},
        "throughput_fps": fastest["throughput_fps"],
        "limit_fraction": first["limit_fraction"],
        "valid": first["valid"] == fastest["valid"] == "true",
        "engine_sha256": engine.sha256,
    }


if __name__ == "__main__":
    run_stage(benchmark)
