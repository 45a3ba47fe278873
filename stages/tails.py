"""Time a semantic network's possible ends in turn: python stages/tails.py model=… backbone=… dataset=….

Argmax or logits, resized inside the graph or by the host: measured one after the other in one run.
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segforge import layout
from segforge.config.compose import engine_config
from segforge.config.engine import EngineConfig
from segforge.config.network import NetworkConfig
from segforge.conversion.parity import parity_samples
from segforge.datasets.core.index import Sample
from segforge.errors import SegforgeError
from segforge.evaluation import score_runner
from segforge.files import read_json, write_csv
from segforge.graph.file import embed_passport, save_onnx
from segforge.graph.interface import outputs_of
from segforge.graph.rewrites import simplified
from segforge.passport import Passport
from segforge.precisions import typing_of
from segforge.runtimes import runtime_of
from segforge.runtimes.core.base import EngineSpec, Runner
from segforge.stage import run_stage
from segforge.terminal import say, table
from segforge.timing.measure import EndToEnd, in_turn

TAILS = (("argmax", "graph"), ("logits", "graph"), ("logits", "host"))
ENGINES = tuple(product(("cpu-onnxruntime", "cpu-openvino"), ("fp32", "int8")))
BATCHES = (1, 8)
BLOCKS, RUNS, UNCOUNTED = 9, 4, 1  # turns of each tail; runs in a turn that count, and that do not
SAME = 0.0005  # score that may differ: rounding at class borders
COLUMNS = ("target", "precision", "batch", "tail", "resize", "engine_ms", "after_ms", "total_ms", "ratio", "score")


def tails(config: NetworkConfig) -> None:
    """Time each tail of a trained semantic network on each CPU engine, with all that follows on the host.

    `total_ms` runs from the network's input to class ids of the image's own size; `ratio` is the
    argmax tail's over it, per turn (above 1: faster than argmax in the graph). Scores are on the
    images that conversions are checked on, never on the scored split. Writes metrics/tails/<variant>.csv
    and says which tail is the fastest that scores the same. Raises `SegforgeError` for other tasks,
    and where a batch is outside the exported range.
    """
    if config.model.task != "semantic":
        raise SegforgeError(f"{config.variant} is a {config.model.task} network", expected="a semantic one")
    low, high = config.export.batch_min, config.export.batch_max
    if not low <= min(BATCHES) <= max(BATCHES) <= high:
        problem = f"tails are timed at batch {', '.join(map(str, BATCHES))}, and export's range is {low} to {high}"
        hint = f"export.batch_min={min(BATCHES)} export.batch_max={max(BATCHES)}"
        raise SegforgeError(problem, expected="a range that holds them", hint=hint)
    # Here, behind the checks of the config: PyTorch takes seconds to import.
    from segforge.checkpoint import load_checkpoint, passport_of
    from segforge.conversion.convert import convert

    paths = config.paths
    network = load_checkpoint(paths.checkpoint, config)
    checkpoint = read_json(paths.checkpoint / "checkpoint.json", made_by=paths.command("train"))
    samples = parity_samples(config)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        graphs = []
        for tail, resize in TAILS:
            passport = passport_of(replace(config, export=replace(config.export, tail=tail, resize=resize)), checkpoint)
            model = simplified(convert(network, passport), config.export.simplifier)
            passport = replace(passport, outputs=outputs_of(model))
            embed_passport(model, passport)
            path = Path(folder, f"{tail}-{resize}.onnx")
            save_onnx(model, path)
            graphs.append((path, passport))
        for target, precision in ENGINES:
            engine = engine_config(config.variant, target, precision)
            with ExitStack() as stack:
                runners = [stack.enter_context(_opened(engine, path, passport, samples)) for path, passport in graphs]
                pairs = [(runner, passport) for runner, (_, passport) in zip(runners, graphs, strict=True)]
                own = [row for batch in BATCHES for row in _turns(pairs, samples, batch)]
            rows += [{"target": target, "precision": precision, **row} for row in own]
            best = "tail={tail} resize={resize}".format(**fastest(own))
            say(f"{target} {precision}: the fastest that scores the same is {best}")
    target_file = layout.METRICS / "tails" / f"{config.variant}.csv"
    write_csv(target_file, COLUMNS, rows)
    print(table(COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows]))
    print(target_file)


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the tail with the highest ratio among those that score what the best does, within `SAME`.

    A tail counts by its smallest ratio and score over the batches: one lucky row wins nothing.
    """
    by_tail = [[row for row in rows if (row["tail"], row["resize"]) == tail] for tail in TAILS]
    timed = [(own, min(float(row["score"]) for row in own)) for own in by_tail if own]
    best = max(score for _, score in timed)
    slowest = [min(own, key=lambda row: float(row["ratio"])) for own, score in timed if best - score <= SAME]
    return max(slowest, key=lambda row: float(row["ratio"]))


def _opened(config: EngineConfig, path: Path, passport: Passport, samples: list[Sample]) -> Runner:
    precision, target, typed = config.precision, config.target, path
    typing, runtime = typing_of(precision), runtime_of(target.runtime)
    if typing.typed:
        typed = path.with_name(f"{path.stem}-{target.name}.onnx")
        save_onnx(typing.typed(path, passport, [s.image for s in samples], precision, target), typed)
    spec = EngineSpec(passport, precision.arithmetic, threads=target.threads, options=target.options)
    built = typed.with_suffix(f".{target.name}-{precision.name}")
    built.write_bytes(runtime.build(typed, spec))
    runner: Runner = runtime.EngineRunner(built, spec)
    return runner


def _turns(pairs: list[tuple[Runner, Passport]], samples: list[Sample], batch: int) -> list[dict[str, Any]]:
    works = [_parts(EndToEnd(runner, passport, samples, batch)) for runner, passport in pairs]
    turns = in_turn(works, turns=BLOCKS, runs=RUNS, uncounted=UNCOUNTED)  # engine and after, seconds
    rows = []
    for (runner, passport), own in zip(pairs, turns, strict=True):
        ratios = [sum(first) / sum(this) for first, this in zip(turns[0], own, strict=True)]
        figures = {
            "engine_ms": statistics.median(e for e, _ in own) * 1000,
            "after_ms": statistics.median(a for _, a in own) * 1000,
            "total_ms": statistics.median(e + a for e, a in own) * 1000,
            "ratio": statistics.median(ratios),
        }
        score = score_runner(runner, passport, samples, batch).result["score"]
        names = {"batch": batch, "tail": passport.tail, "resize": passport.resize}
        rows.append({**names, **{name: round(value, 4) for name, value in figures.items()}, "score": round(score, 4)})
    return rows


def _parts(work: EndToEnd) -> Callable[[], tuple[float, float]]:
    """`work` as a function that runs it once and gives the seconds in the engine and after it."""

    def once() -> tuple[float, float]:
        work.parts = dict.fromkeys(work.parts, 0.0)
        work()
        return work.parts["engine"], work.parts["after_engine"]

    return once


if __name__ == "__main__":
    run_stage(tails)
