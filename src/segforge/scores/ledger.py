"""The ledger: the score at every step from checkpoint to engine, each step tied to the next by hashes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from segforge.config import EngineConfig
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json, sha256_file
from segforge.layout import EnginePaths, VariantPaths
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.build import paths_of, read_manifest

if TYPE_CHECKING:
    from segforge.scores.evaluate import Scored

COLUMNS = ("step", "runtime", "batch", "score", "loss", "agreement", "sha256")
STEPS = {"checkpoint": "torch", "onnx": "onnxruntime", "simplified": "onnxruntime", "typed": "onnxruntime"}


class Step(NamedTuple):
    """What a step before the engine scored, and the SHA-256 of its file."""

    score: float
    sha256: str


def hash_chain(config: EngineConfig, metadata: OnnxMetadata) -> dict[str, Step]:
    """The steps before the engine, after checking that each one read what the last one wrote.

    Raises `SegforgeError` naming the first broken link and the command that mends it.
    """
    variant, engine = VariantPaths(config.variant), paths_of(config)
    exporting, simplifying = variant.command("export"), variant.command("simplify")
    quantizing, building = engine.command("quantize"), engine.command("build")
    export = read_json(variant.metrics("export"), made_by=exporting)
    simplify = read_json(variant.metrics("simplify"), made_by=simplifying)
    quantize = read_json(engine.metrics("quantize"), made_by=quantizing)
    manifest = read_manifest(engine)
    typed = sha256_file(engine.typed)
    links = (
        ("the checkpoint", export["checkpoint_sha256"], metadata.checkpoint_sha256, exporting),
        ("model.onnx", export["onnx_sha256"], simplify["onnx_sha256"], simplifying),
        ("simplified.onnx", simplify["simplified_sha256"], quantize["simplified_sha256"], quantizing),
        ("typed.onnx", quantize["typed_sha256"], typed, quantizing),
        ("the engine's ONNX", typed, manifest["onnx_sha256"], building),
        ("the engine", manifest["engine_sha256"], sha256_file(engine.engine), building),
    )
    for what, written, read, command in links:
        if written != read:
            raise SegforgeError(
                f"the ledger of {engine.folder} is broken at {what}: {written[:16]}… was scored, {read[:16]}… is used",
                expected="the same SHA-256 from the checkpoint to the engine",
                hint=command,
            )
    return {
        "checkpoint": Step(export["checkpoint"], export["checkpoint_sha256"]),
        "onnx": Step(export["onnx"], export["onnx_sha256"]),
        "simplified": Step(simplify["simplified"], simplify["simplified_sha256"]),
        "typed": Step(quantize["typed"], quantize["typed_sha256"]),
    }


def ledger_rows(
    steps: Mapping[str, Step], scored: "Mapping[int, Scored]", runtime: str, engine_sha256: str
) -> list[dict[str, Any]]:
    """Rows of ledger.csv: the steps in order, then the engine at each batch, each with the hash of its file.

    `loss` is the checkpoint's score less the row's. `agreement` is the share of decided classes
    (pixels or images) that equal those of the smallest batch: a batch that is computed wrongly shows
    there even when its score happens to be the same.
    """
    start = steps["checkpoint"].score
    rows: list[dict[str, Any]] = [
        {"step": name, "runtime": STEPS[name], "score": one.score, "loss": start - one.score, "sha256": one.sha256}
        for name, one in steps.items()
    ]
    first = scored[min(scored)].classes
    for batch, one in scored.items():
        score = one.result["score"]
        rows.append(
            {
                "step": "engine",
                "runtime": runtime,
                "batch": batch,
                "score": score,
                "loss": start - score,
                "agreement": float((one.classes == first).mean()),
                "sha256": engine_sha256,
            }
        )
    return rows


def read_ledger(paths: EnginePaths) -> list[dict[str, str]]:
    """The rows of ledger.csv; raises `SegforgeError` when it says nothing of the engine that is built now."""
    evaluating = paths.command("evaluate")
    ledger = read_csv(paths.detail("evaluate", "ledger.csv"), made_by=evaluating)
    built = read_manifest(paths)["engine_sha256"]
    scored = {row.get("sha256") for row in ledger if row["step"] == "engine"}
    if scored != {built}:
        raise SegforgeError(
            f"the ledger of {paths.folder} is of another engine", expected=f"sha256 {built}, as built", hint=evaluating
        )
    return ledger
