"""Bring one network to an engine's numeric type: python stages/quantize.py variant=… target=… precision=int8."""

from pathlib import Path
from typing import Any

from segforge.config.engine import EngineConfig
from segforge.conversion.parity import step_score
from segforge.files import atomic_file, sha256_file, write_json
from segforge.graph.file import load_own, save_onnx
from segforge.graph.interface import require_interface
from segforge.layout import VariantPaths
from segforge.precisions import typing_of
from segforge.precisions.calibrate import choose_images
from segforge.runtimes.core.onnx import OnnxRunner
from segforge.stage import run_stage
from segforge.tasks import task_of
from segforge.terminal import say


def quantize(config: EngineConfig) -> None:
    """Write `typed.onnx`, `calibration.json` and the typed graph's score.

    A precision that a runtime computes in by itself gets the bytes of `simplified.onnx`; int8 carries
    QuantizeLinear/DequantizeLinear pairs, calibrated on images of the training split. Raises
    `SegforgeError`, and writes nothing, for a foreign ONNX file, for a precision that no way of typing
    gives, and when a calibration image lies in the scored split.
    """
    variant, paths, precision = VariantPaths(config.variant), config.paths, config.precision
    typing, source = typing_of(precision), variant.simplified
    say(f"quantize: {source} -> {paths.typed}")
    model, passport = load_own(source, config.variant, made_by=variant.command("simplify"))
    require_interface(model, passport, source)
    listed: dict[str, Any] = {"dataset": passport.dataset, "split": "", "images": [], "method": None, "seed": None}
    if typing.typed and precision.calibration:
        listed = choose_images(passport, precision.calibration)
    with atomic_file(paths.typed) as temporary:
        if typing.typed:
            images = [Path(row["image"]) for row in listed["images"]]
            save_onnx(typing.typed(source, passport, images, precision, config.target), temporary)
        else:
            temporary.write_bytes(source.read_bytes())
        with OnnxRunner(temporary) as runner:
            score = step_score(runner, passport)
        figures = {
            "metric": task_of(passport.task).metric,
            "typed": score,
            "typing": precision.typing,
            "typed_sha256": sha256_file(temporary),
            "simplified_sha256": sha256_file(source),
            "calibration_images": len(listed["images"]),
        }
    write_json(paths.calibration, listed)
    write_json(paths.metrics("quantize"), figures)
    say(f"quantize: {precision.name} {figures['metric']} {score:.4f}")


if __name__ == "__main__":
    run_stage(quantize)
