"""One self-contained page: figures, charts and pictures, with everything needed to repeat them."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from segforge import config, layout
from segforge.datasets.base import Sample, load_index, read_image, read_label_ids
from segforge.datasets.panoptic import read_panoptic, resized, semantic_of
from segforge.datasets.preprocess import resize_ids
from segforge.errors import SegforgeError
from segforge.files import read_json, write_text
from segforge.onnx.metadata import OnnxMetadata
from segforge.report import plots
from segforge.report.catalogue import EngineRecord
from segforge.report.figures import summary
from segforge.report.overlay import jpeg, overlay, palette
from segforge.runtimes.build import open_engine
from segforge.scores.decode import class_ids, segments_of
from segforge.scores.evaluate import infer

PICTURES = {"semantic": 4, "panoptic": 4, "classification": 12}
LAYERS = 5


def write_page(title: str, engines: list[EngineRecord]) -> None:
    """Write metrics/report/report.html: no outside resource, no time of day, the same bytes for the same inputs."""
    variants = dict.fromkeys(engine.variant for engine in engines)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = lambda value, form: "–" if value is None else form.format(value)
    page = environment.get_template("page.html").render(
        title=title,
        machine=read_json(layout.MACHINE, made_by="python stages/probe.py") if layout.MACHINE.is_file() else None,
        engines=engines,
        runtimes=list(dict.fromkeys(engine.runtime for engine in engines)),
        variants=[_variant(name, engines) for name in variants],
    )
    write_text(layout.REPORT, page)


def _variant(name: str, engines: list[EngineRecord]) -> dict[str, Any]:
    own = [engine for engine in engines if engine.variant == name]
    lines = [(engine, summary(engine, engines)) for engine in own]
    timed = [(engine, line) for engine, line in lines if line["latency"][0] is not None]
    passed = sorted((pair for pair in timed if pair[0].gate), key=lambda pair: pair[1]["latency"][0])
    scored = [engine for engine in own if engine.evaluate]
    return {
        "name": name,
        "metric": scored[0].evaluate["metric"] if scored and scored[0].evaluate else "score",
        "void": scored[0].evaluate.get("void", "") if scored and scored[0].evaluate else "",
        "metadata": next((engine.metadata for engine in own if engine.metadata), None),
        "lines": lines,
        "batches": next((line["batches"] for _, line in timed), []),
        "best": passed[0] if passed else None,
        "charts": _charts(timed, scored),
        "ledgers": [_ledger(engine) for engine in scored],
        "classes": _classes(scored),
        "layers": [(engine, _layers(engine)) for engine in scored if engine.layers],
        "pictures": _pictures(passed[0][0] if passed else scored[0] if scored else None),
    }


def _series(engine: EngineRecord, points: Sequence[tuple[float, float]]) -> plots.Series:
    return plots.Series(engine.runtime, engine.precision, points)


def _charts(timed: list[tuple[EngineRecord, dict[str, Any]]], scored: list[EngineRecord]) -> list[tuple[str, Any, str]]:
    if not timed:
        return []
    metric = scored[0].evaluate["metric"] if scored[0].evaluate else "score"
    batch = timed[0][1]["batches"][0]
    points = [_series(e, [(line["latency"][0], line["score"])]) for e, line in timed]
    sweeps = [_series(e, sorted(e.latency().items())) for e, _ in timed]
    limits = [
        (_series(e, []), float(row["limit_fraction"]), float(row["p50_ms"]), float(row["limit_ms"]))
        for e, _ in timed
        for row in e.sweep
        if row["quantity"] == "compute" and int(row["batch"]) == batch and row["limit_fraction"]
    ]
    charts = [
        (
            f"{metric} against latency",
            plots.score_against_latency(points, metric, batch),
            "The line is the Pareto front: nothing is both faster and better than what lies on it (names in bold).",
        ),
        (
            "Latency against batch",
            plots.latency_against_batch(sweeps),
            "Median of the computation alone, on logarithmic axes. Solid: fp32; dashed: bf16 or fp16; dotted: int8.",
        ),
    ]
    if limits:
        note = (
            "Share of the limit that each engine reaches, and the limit: the least time that its operations and bytes "
            "can take at the rates measured on this machine."
        )
        charts.append((f"Distance to the limit, batch {batch}", plots.limit_bars(limits), note))
    return charts


def _ledger(engine: EngineRecord) -> tuple[EngineRecord, Any]:
    steps = [
        (f"b{row['batch']}" if row["step"] == "engine" else row["step"], float(row["score"])) for row in engine.ledger
    ]
    try:
        budget = config.budget(engine.variant, engine.precision)
    except SegforgeError:
        budget = None
    return engine, plots.waterfall(engine.runtime, f"{engine.target} {engine.precision}", steps, budget)


def _classes(scored: list[EngineRecord]) -> list[dict[str, Any]]:
    """Per class the score of each engine, in the order of `scored`."""
    if not scored:
        return []
    tables = [[float(v) if v else None for v in (list(row.values())[1] for row in e.classes)] for e in scored]
    return [
        {"class": row["class"], "scores": [table[i] for table in tables]} for i, row in enumerate(scored[0].classes)
    ]


def _layers(engine: EngineRecord) -> list[dict[str, Any]]:
    total = sum(float(row["limit_us"]) for row in engine.layers) or 1.0
    longest = sorted(engine.layers, key=lambda row: -float(row["limit_us"]))[:LAYERS]
    return [{**row, "share": float(row["limit_us"]) / total} for row in longest]


def _pictures(engine: EngineRecord | None) -> dict[str, Any] | None:
    """Scored images through `engine`; a reason instead where the engine or the data set is not at hand."""
    if engine is None or engine.metadata is None:
        return None
    metadata = engine.metadata
    try:
        samples = load_index(metadata.dataset).split(metadata.task, metadata.score_split)
        count = min(PICTURES.get(metadata.task, 0), len(samples))
        # Drawn, not evenly spaced: classes often follow each other at a fixed step.
        chosen = [samples[i] for i in sorted(np.random.default_rng(0).choice(len(samples), count, replace=False))]
        shown: list[dict[str, Any]] = []
        with open_engine(engine.config()) as runner:
            rows = infer(runner, metadata, chosen, lambda sample: read_image(sample.image), metadata.batch_min)
            for part, images, raw in rows:
                found = segments_of(raw, metadata) if metadata.task == "panoptic" else class_ids(raw, metadata)
                for sample, image, one in zip(part, images, found, strict=True):
                    shown.append(_picture(sample, image, one, metadata))
    except SegforgeError as error:
        return {"engine": engine, "reason": str(error).splitlines()[0], "shown": [], "legend": []}
    table = palette(metadata.colours, len(metadata.classes))
    legend = [(name, "#" + bytes(table[i]).hex()) for i, name in enumerate(metadata.classes)]
    return {
        "engine": engine,
        "reason": "",
        "shown": shown,
        "legend": [] if metadata.task == "classification" else legend,
    }


def _picture(sample: Sample, image: Any, found: Any, metadata: OnnxMetadata) -> dict[str, Any]:
    """One image with its label and what was found: class ids [H, W], segments, or a class id."""
    if isinstance(sample.label, int):
        return {
            "name": sample.image.name,
            "image": _inline(Image.fromarray(image), 150),
            "truth": metadata.classes[sample.label],
            "predicted": metadata.classes[int(found)],
        }
    edges: list[Any] = [None, None]  # between classes
    if metadata.task == "panoptic":
        label = read_panoptic(sample)
        own = resized(found, *label.ids.shape)
        truth, predicted, edges = semantic_of(label), semantic_of(own), [label.ids, own[0]]
    else:
        truth = read_label_ids(sample.label)
        predicted = resize_ids(found, *truth.shape)
    if image.shape[:2] != truth.shape:
        image = np.asarray(Image.fromarray(image).resize(truth.shape[::-1], Image.Resampling.BILINEAR))
    table, classes = palette(metadata.colours, len(metadata.classes)), len(metadata.classes)
    counted = truth != metadata.void
    return {
        "name": sample.image.name,
        "image": _inline(Image.fromarray(image)),
        "truth": _inline(overlay(image, truth, table, classes, edges=edges[0])),
        "predicted": _inline(overlay(image, predicted, table, classes, edges=edges[1])),
        "right": float((predicted == truth)[counted].mean()) if counted.any() else None,
    }


def _inline(image: Image.Image, width: int = 480) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, width)).decode()
