"""The same figures three ways: rows of figures.csv, of the plots' tables, and the table in the terminal."""

from typing import Any

from segforge.report.catalogue import EngineRecord
from segforge.terminal import table

BASELINE = ("torch", "fp32")  # runtime and precision that speed-ups are against, on the same device
TIMED = ("quantity", "p50_ms", "p90_ms", "p99_ms", "n", "throughput_fps", "limit_ms", "limit_fraction", "valid")
COLUMNS = (
    *("variant", "target", "precision", "batch", "height", "width", "metric", "score"),
    *(*TIMED, "reasons", "engine_sha256", "onnx_sha256", "command"),
)


def figure_rows(engine: EngineRecord) -> list[dict[str, Any]]:
    """Rows of figures.csv: one per timed batch and quantity, with the score of that engine at that batch."""
    scores = engine.scores()
    fixed = {
        **_names(engine),
        **{name: engine.record.get(name) for name in ("height", "width")},
        **{name: engine.evaluate.get(name) for name in ("metric", "engine_sha256", "onnx_sha256")},
        "command": engine.timed_by,
    }
    return [
        {**fixed, "score": scores[int(row["batch"])], **{name: row[name] for name in ("batch", *TIMED, "reasons")}}
        for row in engine.sweep
        if int(row["batch"]) in scores
    ]


def latency_rows(engines: list[EngineRecord]) -> list[dict[str, Any]]:
    """Rows of latency.csv: the median of the computation alone, at each batch."""
    return [{**_names(e), "batch": b, "p50_ms": ms} for e in engines for b, ms in e.latency().items()]


def score_rows(engines: list[EngineRecord]) -> list[dict[str, Any]]:
    """Rows of scores.csv: the score, and the latency at the smallest batch."""
    found = [(e, e.evaluate, e.latency()) for e in engines]
    return [{**_names(e), "score": s["score"], "latency_ms": ms[min(ms)]} for e, s, ms in found if s and ms]


def summary(engine: EngineRecord, engines: list[EngineRecord]) -> dict[str, Any]:
    """What one line of a results table says; None where there is no figure.

    `latency` and `faster` (times the baseline's speed) are pairs: the smallest batch and the largest that
    any engine of the variant was timed at, so that a column of a table is one batch.
    `valid` and `reasons` are about these two latencies.
    """
    latency, variant = engine.latency(), [other for other in engines if other.variant == engine.variant]
    timed = {int(row["batch"]) for other in variant for row in other.sweep}
    ends = [min(timed), max(timed)] if timed else []
    baseline = (engine.device, *BASELINE)
    base = next((e.latency() for e in variant if (e.device, e.runtime, e.precision) == baseline), {})
    shown = [row for row in engine.sweep if row["quantity"] == "compute" and int(row["batch"]) in ends]
    return {
        "score": engine.evaluate.get("score"),
        "loss": engine.evaluate.get("loss"),
        "gate": "passed" if engine.gate else "not passed" if engine.evaluate else None,
        "batches": ends,
        "latency": [latency.get(b) for b in ends] or [None, None],
        "faster": [base[b] / latency[b] if b in base and b in latency else None for b in ends] or [None, None],
        "limit_fraction": engine.benchmark.get("limit_fraction"),
        "valid": all(row["valid"].lower() == "true" for row in shown) if shown else None,
        "reasons": [f"b{row['batch']}: {row['reasons']}" for row in shown if row["reasons"]],
    }


def terminal_table(engines: list[EngineRecord]) -> str:
    """Per variant a table of plain text; engines without figures are named below it with what to type."""
    parts: list[str] = []
    for variant in dict.fromkeys(engine.variant for engine in engines):
        lines = [(engine, summary(engine, engines)) for engine in engines if engine.variant == variant]
        ends = [f" b{batch}" for batch in lines[0][1]["batches"]] or ["", ""]
        timed = [f"{what}{end}" for what in ("p50 ms", "faster") for end in ends]
        header = ["target", "precision", "score", "loss", "gate", *timed, "of limit", "valid"]
        metric = next((engine.evaluate["metric"] for engine, _ in lines if engine.evaluate), "score")
        parts.append(f"{variant} ({metric})\n{table(header, [_cells(*line) for line in lines])}")
        parts += [f"missing: {engine.label}: {engine.missing}" for engine, _ in lines if engine.missing]
        invalid = [(engine, "; ".join(line["reasons"])) for engine, line in lines]
        parts += [f"not valid: {engine.label}: {reasons}" for engine, reasons in invalid if reasons]
        parts.append("")
    return "\n".join(parts)


def _cells(engine: EngineRecord, line: dict[str, Any]) -> list[str]:
    return [
        *(engine.target, engine.precision),
        *(_figure(line["score"], "{:.4f}"), _figure(line["loss"], "{:+.4f}"), line["gate"] or "-"),
        *(_figure(ms, "{:.2f}") for ms in line["latency"]),
        *(_figure(times, "{:.2f}x") for times in line["faster"]),
        *(_figure(line["limit_fraction"], "{:.1%}"), {True: "yes", False: "no", None: "-"}[line["valid"]]),
    ]


def _names(engine: EngineRecord) -> dict[str, Any]:
    return {"variant": engine.variant, "target": engine.target, "precision": engine.precision}


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
