"""The same figures three ways: figures.csv, the plots' tables, and the table in the terminal."""

from typing import Any

from segforge import layout
from segforge.config import MachineConfig
from segforge.files import write_csv
from segforge.progress import say
from segforge.report.catalogue import EngineRecord, baseline_of, read_catalogue
from segforge.report.table import text_table

TIMED = ("quantity", "p50_ms", "p90_ms", "p99_ms", "n", "throughput_fps", "limit_ms", "limit_fraction", "valid")
COLUMNS = (
    *("variant", "target", "precision", "batch", "height", "width", "metric", "score"),
    *(*TIMED, "reasons", "engine_sha256", "onnx_sha256", "command"),
)
HEADER = ("target", "precision", "score", "loss", "gate", "p50 ms", "p50 ms", "faster", "faster", "of limit", "valid")


def report(config: MachineConfig) -> None:
    """Write figures.csv, the plots' tables and the page over the whole catalogue, and print the table.

    An engine without figures is listed as missing, one that failed its gate as failed.
    """
    from segforge.report.page import write_page

    engines = read_catalogue()
    say(f"writing {layout.REPORT}, {layout.FIGURES}, {layout.LATENCY_PLOT} and {layout.SCORE_PLOT}")
    write_csv(layout.FIGURES, COLUMNS, [row for engine in engines for row in figure_rows(engine)])
    write_csv(
        layout.LATENCY_PLOT,
        ["variant", "target", "precision", "batch", "p50_ms"],
        [{**_names(e), "batch": b, "p50_ms": ms} for e in engines for b, ms in e.latency().items()],
    )
    write_csv(
        layout.SCORE_PLOT,
        ["variant", "target", "precision", "score", "latency_ms"],
        [
            {**_names(e), "score": e.evaluate["score"], "latency_ms": e.latency()[min(e.latency())]}
            for e in engines
            if e.evaluate and e.latency()
        ],
    )
    write_page(config.title, engines)
    print(terminal_table(engines))
    print(layout.REPORT)


def figure_rows(engine: EngineRecord) -> list[dict[str, Any]]:
    """Rows of figures.csv: one per timed batch and quantity, with the score of that engine at that batch."""
    if engine.missing or engine.evaluate is None:
        return []
    scores = engine.scores()
    return [
        {
            **_names(engine),
            "batch": row["batch"],
            "height": engine.record.get("height"),
            "width": engine.record.get("width"),
            "metric": engine.evaluate["metric"],
            "score": scores[int(row["batch"])],
            **{name: row[name] for name in (*TIMED, "reasons")},
            "engine_sha256": engine.evaluate["engine_sha256"],
            "onnx_sha256": engine.evaluate["onnx_sha256"],
            "command": engine.timed_by,
        }
        for row in engine.sweep
        if int(row["batch"]) in scores
    ]


def summary(engine: EngineRecord, engines: list[EngineRecord]) -> dict[str, Any]:
    """What one line of a results table says; None where there is no figure.

    `latency` and `faster` (times the baseline's speed) are pairs: the smallest batch and the largest that
    any engine of the variant was timed at, so that a column of a table is one batch.
    `valid` and `reasons` are about these two latencies.
    """
    latency = engine.latency()
    timed = {int(row["batch"]) for other in engines if other.variant == engine.variant for row in other.sweep}
    ends = [min(timed), max(timed)] if timed else []
    baseline = baseline_of(engine, engines)
    base = baseline.latency() if baseline else {}
    shown = [row for row in engine.sweep if row["quantity"] == "compute" and int(row["batch"]) in ends]
    return {
        "score": engine.evaluate["score"] if engine.evaluate else None,
        "loss": engine.evaluate["loss"] if engine.evaluate else None,
        "gate": "passed" if engine.gate else "not passed" if engine.evaluate else None,
        "batches": ends,
        "latency": [latency.get(b) for b in ends] or [None, None],
        "faster": [base[b] / latency[b] if b in base and b in latency else None for b in ends] or [None, None],
        "limit_fraction": engine.benchmark["limit_fraction"] if engine.benchmark else None,
        "valid": all(row["valid"].lower() == "true" for row in shown) if shown else None,
        "reasons": [f"b{row['batch']}: {row['reasons']}" for row in shown if row["reasons"]],
    }


def terminal_table(engines: list[EngineRecord]) -> str:
    """Per variant a table of plain text; engines without figures are named below it with what to type."""
    parts: list[str] = []
    for variant in dict.fromkeys(engine.variant for engine in engines):
        own = [engine for engine in engines if engine.variant == variant]
        rows, ends = [], ["", ""]
        for engine in own:
            line = summary(engine, engines)
            if line["batches"]:
                ends = [f" b{batch}" for batch in line["batches"]]
            rows.append(
                [
                    engine.target,
                    engine.precision,
                    _figure(line["score"], "{:.4f}"),
                    _figure(line["loss"], "{:+.4f}"),
                    line["gate"] or "-",
                    *(_figure(ms, "{:.2f}") for ms in line["latency"]),
                    *(_figure(times, "{:.2f}x") for times in line["faster"]),
                    _figure(line["limit_fraction"], "{:.1%}"),
                    {True: "yes", False: "no", None: "-"}[line["valid"]],
                ]
            )
        header = [h + (ends[(i - 1) % 2] if h in ("p50 ms", "faster") else "") for i, h in enumerate(HEADER)]
        metric = next((engine.evaluate["metric"] for engine in own if engine.evaluate), "score")
        parts.append(f"{variant} ({metric})\n{text_table(header, rows)}")
        parts += [f"missing: {engine.target} {engine.precision}: {engine.missing}" for engine in own if engine.missing]
        for engine in own:
            reasons = summary(engine, engines)["reasons"]
            if reasons:
                parts.append(f"not valid: {engine.target} {engine.precision}: {'; '.join(reasons)}")
        parts.append("")
    return "\n".join(parts)


def _names(engine: EngineRecord) -> dict[str, Any]:
    return {"variant": engine.variant, "target": engine.target, "precision": engine.precision}


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
