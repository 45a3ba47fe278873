"""One self-contained page: figures, charts and pictures, with everything needed to repeat them."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from segforge import layout
from segforge.config.compose import budget, engine_config, precision_row
from segforge.datasets.core.images import read_image
from segforge.datasets.core.index import load_index
from segforge.engines.engine import Engine
from segforge.errors import SegforgeError
from segforge.evaluation import infer
from segforge.files import read_json, write_text
from segforge.report import plots
from segforge.report.catalogue import EngineRecord
from segforge.report.figures import summary
from segforge.tasks import task_of
from segforge.tasks.core.overlay import jpeg, palette

LAYERS = 5
SIGNS = {"circle": "●", "square": "■", "diamond": "◆", "triangle": "▲"}
plots.TEMPLATES.filters["figure"] = lambda value, form: "–" if value is None else form.format(value)


def write_page(title: str, engines: list[EngineRecord]) -> None:
    """Write metrics/report/report.html: no outside resource, no time of day, the same bytes for the same inputs."""
    probed = {engine.device: layout.machine(engine.device) for engine in engines}
    page = plots.TEMPLATES.get_template("page.html").render(
        title=title,
        engines=engines,
        variants=[_variant(name, engines) for name in dict.fromkeys(engine.variant for engine in engines)],
        signs=[(SIGNS[precision_row(name).mark.shape], name) for name in dict.fromkeys(e.precision for e in engines)],
        machines={d: read_json(path, made_by="python stages/probe.py") for d, path in probed.items() if path.is_file()},
    )
    write_text(layout.REPORT, page)


def _variant(name: str, engines: list[EngineRecord]) -> dict[str, Any]:
    own = [engine for engine in engines if engine.variant == name]
    lines = [(engine, summary(engine, engines)) for engine in own]
    timed = [(engine, line) for engine, line in lines if line["latency"][0] is not None]
    passed = sorted((pair for pair in timed if pair[0].gate), key=lambda pair: pair[1]["latency"][0])
    scored = [engine for engine in own if engine.evaluate]
    first = scored[0].evaluate if scored else {}
    metric, batches = first.get("metric", "score"), lines[0][1]["batches"]
    return {
        "name": name,
        "metric": metric,
        "void": first.get("void", ""),
        "passport": next((engine.passport for engine in own if engine.passport), None),
        "lines": lines,
        "batches": batches,
        "best": passed[0] if passed else None,
        "charts": _charts(timed, metric, batches[0]) if timed else None,
        "ledgers": [(engine, _ledger(engine)) for engine in scored],
        "classes": _classes(scored),
        "layers": [(engine, _layers(engine)) for engine in scored if engine.layers],
        "pictures": _pictures(passed[0][0] if passed else scored[0] if scored else None),
    }


def _series(engine: EngineRecord, points: Sequence[tuple[float, float]]) -> plots.Series:
    look = precision_row(engine.precision).mark
    return plots.Series(engine.runtime, engine.precision, points, look.shape, look.dash)


def _charts(timed: list[tuple[EngineRecord, dict[str, Any]]], metric: str, batch: int) -> dict[str, Any]:
    """The charts of the engines that were timed at `batch`, the smallest; none of limits where there are none."""
    points = [_series(engine, [(line["latency"][0], line["score"])]) for engine, line in timed]
    sweeps = [_series(engine, sorted(engine.latency().items())) for engine, _ in timed]
    limits = [
        (_series(engine, []), float(row["limit_fraction"]), float(row["p50_ms"]), float(row["limit_ms"]))
        for engine, _ in timed
        for row in engine.sweep
        if row["quantity"] == "compute" and int(row["batch"]) == batch and row["limit_fraction"]
    ]
    return {
        "score": plots.score_against_latency(points, metric, batch),
        "latency": plots.latency_against_batch(sweeps),
        "limits": plots.limit_bars(limits) if limits else None,
    }


def _ledger(engine: EngineRecord) -> Any:
    names = [f"b{row['batch']}" if row["step"] == "engine" else row["step"] for row in engine.ledger]
    steps = [(name, float(row["score"])) for name, row in zip(names, engine.ledger, strict=True)]
    try:
        allowed = budget(engine.variant, precision_row(engine.precision))
    except SegforgeError:
        allowed = None
    return plots.waterfall(engine.runtime, engine.label, steps, allowed)


def _classes(scored: list[EngineRecord]) -> list[dict[str, Any]]:
    """Per class the score of each engine, in the order of `scored`."""
    tables = [[(row["class"], list(row.values())[1]) for row in engine.classes] for engine in scored]
    rows = zip(*tables, strict=False)
    return [{"class": row[0][0], "scores": [float(score) if score else None for _, score in row]} for row in rows]


def _layers(engine: EngineRecord) -> list[dict[str, Any]]:
    total = sum(float(row["limit_us"]) for row in engine.layers) or 1.0
    longest = sorted(engine.layers, key=lambda row: -float(row["limit_us"]))[:LAYERS]
    return [{**row, "share": float(row["limit_us"]) / total} for row in longest]


def _pictures(engine: EngineRecord | None) -> dict[str, Any] | None:
    """Scored images through `engine`; a reason instead where the engine or the data set is not at hand."""
    if engine is None or engine.passport is None:
        return None
    passport, task = engine.passport, task_of(engine.passport.task)
    shown: list[dict[str, Any]] = []
    try:
        samples = load_index(passport.dataset).split(passport.task, passport.score_split)
        count = min(task.pictures, len(samples))
        # Drawn, not evenly spaced: classes often follow each other at a fixed step.
        chosen = [samples[i] for i in sorted(np.random.default_rng(0).choice(len(samples), count, replace=False))]
        with Engine.of(engine_config(engine.variant, engine.target, engine.precision)).open() as runner:
            rows = infer(runner, passport, chosen, lambda sample: read_image(sample.image), passport.batch_min)
            for part, images, raw in rows:
                for sample, image, found in zip(part, images, task.predictions(raw, passport), strict=True):
                    picture = task.picture(image, sample, found, passport)
                    sides = {"truth": _inline(picture.truth), "predicted": _inline(picture.predicted)}
                    itself = _inline(Image.fromarray(image), 480 if task.of_pixels else 150)
                    shown.append({"name": sample.image.name, "image": itself, **sides, "right": picture.right})
    except SegforgeError as error:
        return {"engine": engine, "reason": str(error).splitlines()[0], "shown": [], "legend": []}
    table = palette(passport.colours, len(passport.classes))
    legend = [(name, "#" + bytes(table[i]).hex()) for i, name in enumerate(passport.classes)]
    return {"engine": engine, "reason": "", "shown": shown, "legend": legend if task.of_pixels else []}


def _inline(side: Image.Image | str, width: int = 480) -> str:
    """A picture as it stands in the page; words as they are."""
    if isinstance(side, str):
        return side
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(side, width)).decode()
