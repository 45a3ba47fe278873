"""The ledger: the score at every step from checkpoint to engine, each step tied to the next by hashes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json
from segforge.layout import EnginePaths, VariantPaths

if TYPE_CHECKING:
    from segforge.engines.engine import Engine
    from segforge.evaluation import Scored

COLUMNS = ("step", "by", "runtime", "batch", "score", "loss", "agreement", "sha256")
STEPS = {"checkpoint": "torch", "onnx": "onnxruntime", "simplified": "onnxruntime", "typed": "onnxruntime"}


class Step(NamedTuple):
    """What a step before the engine scored, what made its file, and the SHA-256 of that."""

    score: float
    by: str
    sha256: str


def hash_chain(engine: "Engine") -> dict[str, Step]:
    """The steps before the engine; raises `SegforgeError` where one did not read what the one before it wrote."""
    paths, variant = engine.paths, VariantPaths(engine.paths.variant)
    exporting, simplifying = variant.command("export"), variant.command("simplify")
    quantizing = paths.command("quantize")
    export = read_json(variant.metrics("export"), made_by=exporting)
    simplify = read_json(variant.metrics("simplify"), made_by=simplifying)
    quantize = read_json(paths.metrics("quantize"), made_by=quantizing)
    links = (
        ("the checkpoint", export["checkpoint_sha256"], engine.passport.checkpoint_sha256, exporting),
        ("model.onnx", export["onnx_sha256"], simplify["onnx_sha256"], simplifying),
        ("simplified.onnx", simplify["simplified_sha256"], quantize["simplified_sha256"], quantizing),
        ("typed.onnx", quantize["typed_sha256"], engine.onnx_sha256, quantizing),
    )
    for what, scored, used, command in links:
        if scored != used:
            problem = f"the ledger of {paths.folder} is broken at {what}: scored {scored[:16]}…, used {used[:16]}…"
            raise SegforgeError(problem, expected="the same SHA-256 from the checkpoint to the engine", hint=command)
    made = (
        ("checkpoint", export, "training"),
        ("onnx", export, "torch.onnx"),
        ("simplified", simplify, simplify["simplifier"]),
        ("typed", quantize, quantize["typing"]),
    )
    return {step: Step(figures[step], by, figures[f"{step}_sha256"]) for step, figures, by in made}


def ledger_rows(
    steps: Mapping[str, Step], scored: "Mapping[int, Scored]", runtime: str, engine_sha256: str
) -> list[dict[str, Any]]:
    """Rows of ledger.csv: the steps in order, then the engine at each batch, each with the hash of its file.

    `loss` is the checkpoint's score less the row's. `agreement` is the share of decided classes (pixels or images)
    that equal those of the smallest batch: a batch that is computed wrongly shows there under the same score, too.
    """
    start = steps["checkpoint"].score
    rows: list[dict[str, Any]] = [
        {"step": name, "runtime": STEPS[name], "loss": start - one.score, **one._asdict()}
        for name, one in steps.items()
    ]
    first = scored[min(scored)].classes
    for batch, one in scored.items():
        score = one.result["score"]
        row = {
            "step": "engine",
            "by": "build",
            "runtime": runtime,
            "batch": batch,
            "score": score,
            "loss": start - score,
        }
        rows.append({**row, "agreement": float((one.classes == first).mean()), "sha256": engine_sha256})
    return rows


def read_ledger(paths: EnginePaths) -> list[dict[str, str]]:
    """The rows of ledger.csv; raises `SegforgeError` when it says nothing of the engine that is built now."""
    evaluating = paths.command("evaluate")
    ledger = read_csv(paths.detail("evaluate", "ledger.csv"), made_by=evaluating)
    built = paths.read_manifest()["engine_sha256"]
    scored = {row.get("sha256") for row in ledger if row["step"] == "engine"}
    if scored != {built}:
        problem = f"the ledger of {paths.folder} is of another engine"
        raise SegforgeError(problem, expected=f"sha256 {built}, as built", hint=evaluating)
    return ledger
