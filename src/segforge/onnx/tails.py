"""Where a semantic network should end: argmax or logits, resize inside or outside, measured in turn in one run."""

import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segforge import layout
from segforge.config import EngineConfig, NetworkConfig, engine_config
from segforge.datasets.base import Sample
from segforge.errors import SegforgeError
from segforge.files import read_json, write_csv
from segforge.layout import VariantPaths
from segforge.onnx.export import convert, describe
from segforge.onnx.graph import outputs_of
from segforge.onnx.metadata import OnnxMetadata, embed_metadata, save_onnx
from segforge.onnx.parity import check_samples
from segforge.onnx.simplify import simplified
from segforge.progress import say
from segforge.quantization.quantize import to_int8
from segforge.report.table import text_table
from segforge.runtimes import open_runner, runtime_module
from segforge.runtimes.base import BuildJob, Runner
from segforge.scores.evaluate import score_runner
from segforge.timing.measure import EndToEnd
from segforge.training.checkpoint import load_checkpoint

TAILS = (("argmax", "graph"), ("logits", "graph"), ("logits", "host"))
ENGINES = tuple(
    (f"cpu-{runtime}", precision) for runtime in ("onnxruntime", "openvino") for precision in ("fp32", "int8")
)
BATCHES = (1, 8)
BLOCKS, RUNS, UNCOUNTED = 9, 4, 1  # turns of each tail; runs in a turn that count, and that do not
SAME = 0.0005  # score that may differ: rounding at class borders
COLUMNS = ("target", "precision", "batch", "tail", "resize", "engine_ms", "after_ms", "total_ms", "ratio", "score")


def compare_tails(config: NetworkConfig) -> None:
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
        raise SegforgeError(
            f"tails are timed at batch {', '.join(map(str, BATCHES))}, and export's range is {low} to {high}",
            expected="a range that holds them",
            hint=f"export.batch_min={min(BATCHES)} export.batch_max={max(BATCHES)}",
        )
    paths = VariantPaths(config.variant)
    network = load_checkpoint(paths.checkpoint, config)
    checkpoint = read_json(paths.checkpoint / "checkpoint.json", made_by=paths.command("train"))
    samples = check_samples(config)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        graphs = []
        for tail, resize in TAILS:
            metadata = describe(replace(config, export=replace(config.export, tail=tail, resize=resize)), checkpoint)
            model = simplified(convert(network, metadata))
            metadata = replace(metadata, outputs=outputs_of(model))
            embed_metadata(model, metadata)
            path = Path(folder, f"{tail}-{resize}.onnx")
            save_onnx(model, path)
            graphs.append((path, metadata))
        for target, precision in ENGINES:
            engine = engine_config(config.variant, target, precision)
            with ExitStack() as stack:
                runners = [stack.enter_context(_opened(engine, path, metadata, samples)) for path, metadata in graphs]
                pairs = [(runner, metadata) for runner, (_, metadata) in zip(runners, graphs, strict=True)]
                rows += [row for batch in BATCHES for row in _turns(pairs, samples, batch, target, precision)]
    target_file = layout.METRICS / "tails" / f"{config.variant}.csv"
    write_csv(target_file, COLUMNS, rows)
    print(text_table(list(COLUMNS), [[str(row[name]) for name in COLUMNS] for row in rows]))
    for target, precision in ENGINES:
        own = [row for row in rows if (row["target"], row["precision"]) == (target, precision)]
        best = fastest(own)
        say(f"{target} {precision}: the fastest that scores the same is tail={best['tail']} resize={best['resize']}")
    print(target_file)


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the tail with the highest ratio among those that score what the best does, within `SAME`.

    A tail counts by its smallest ratio and score over the batches: one lucky row wins nothing.
    """
    tails: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        tails.setdefault((row["tail"], row["resize"]), []).append(row)
    scores = {tail: min(float(row["score"]) for row in own) for tail, own in tails.items()}
    same = [own for tail, own in tails.items() if max(scores.values()) - scores[tail] <= SAME]
    slowest = [min(own, key=lambda row: float(row["ratio"])) for own in same]
    return max(slowest, key=lambda row: float(row["ratio"]))


def _opened(config: EngineConfig, path: Path, metadata: OnnxMetadata, samples: list[Sample]) -> Runner:
    runtime = config.target.runtime
    typed = path
    if config.precision.calibration:
        typed = path.with_name(f"{path.stem}-{config.target.name}.onnx")
        save_onnx(to_int8(path, metadata, [s.image for s in samples], config.precision, runtime), typed)
    job = BuildJob(typed, metadata, config.precision.name, runtime.threads, "cpu", runtime.options)
    built = typed.with_suffix(f".{config.target.name}-{config.precision.name}")
    built.write_bytes(runtime_module(runtime.name).build(job))
    return open_runner(
        runtime.name, built, metadata, precision=config.precision.name, threads=runtime.threads, options=runtime.options
    )


def _turns(
    pairs: list[tuple[Runner, OnnxMetadata]], samples: list[Sample], batch: int, target: str, precision: str
) -> list[dict[str, Any]]:
    works = [EndToEnd(runner, metadata, samples, batch) for runner, metadata in pairs]
    turns: list[list[tuple[float, float]]] = [[] for _ in works]  # engine and after, seconds
    for _ in range(BLOCKS):
        for work, medians in zip(works, turns, strict=True):
            taken = []
            for _ in range(UNCOUNTED + RUNS):
                work.parts = dict.fromkeys(work.parts, 0.0)
                work()
                taken.append((work.parts["engine"], work.parts["after_engine"]))
            counted = taken[UNCOUNTED:]
            medians.append((statistics.median(e for e, _ in counted), statistics.median(a for _, a in counted)))
    rows = []
    for (runner, metadata), own in zip(pairs, turns, strict=True):
        ratios = [sum(first) / sum(this) for first, this in zip(turns[0], own, strict=True)]
        figures = {
            "engine_ms": statistics.median(e for e, _ in own) * 1000,
            "after_ms": statistics.median(a for _, a in own) * 1000,
            "total_ms": statistics.median(e + a for e, a in own) * 1000,
            "ratio": statistics.median(ratios),
        }
        score = score_runner(runner, metadata, samples, batch).result["score"]
        names = {"target": target, "precision": precision, "batch": batch}
        names |= {"tail": metadata.tail, "resize": metadata.resize}
        rows.append({**names, **{name: round(value, 4) for name, value in figures.items()}, "score": round(score, 4)})
    return rows
