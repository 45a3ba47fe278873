"""Export one checkpoint to ONNX: python stages/export.py model=… backbone=… dataset=…."""

from dataclasses import replace

from segforge.config.network import NetworkConfig
from segforge.files import atomic_file, read_json, sha256_file, write_json
from segforge.graph.file import embed_passport, save_onnx
from segforge.graph.interface import outputs_of, require_interface
from segforge.stage import run_stage
from segforge.tasks import task_of
from segforge.terminal import say


def export(config: NetworkConfig) -> None:
    """Write `model.onnx` and its scores beside the checkpoint's.

    The file takes `images` [batch, …] and gives `ids` uint8 [batch, height, width], `logits` float32,
    or what a panoptic network gives; the batch is dynamic. Raises `SegforgeError`, and writes nothing,
    when its outputs on real images (never of the scored split) differ from the checkpoint's by more
    than `export.tolerance`, or when its score does.
    """
    # Here, behind the checks of the config: PyTorch takes seconds to import.
    from segforge.checkpoint import load_checkpoint, passport_of
    from segforge.conversion.convert import convert
    from segforge.conversion.parity import check_parity, parity_samples, require_score, step_score
    from segforge.runtimes import torch
    from segforge.runtimes.core.base import EngineSpec
    from segforge.runtimes.core.onnx import OnnxRunner

    paths, tolerance = config.paths, config.export.tolerance
    say(f"export: {paths.checkpoint} -> {paths.onnx}")
    network = load_checkpoint(paths.checkpoint, config)
    checkpoint = read_json(paths.checkpoint / "checkpoint.json", made_by=paths.command("train"))
    passport = passport_of(config, checkpoint)
    model = convert(network, passport)
    passport = replace(passport, outputs=outputs_of(model))
    embed_passport(model, passport)
    require_interface(model, passport, paths.onnx)
    with atomic_file(paths.onnx) as temporary:
        save_onnx(model, temporary)
        weights = paths.checkpoint / "best.safetensors"
        opened = torch.EngineRunner(weights, EngineSpec(passport, "fp32"))
        with opened as reference, OnnxRunner(temporary) as candidate:
            samples, batches = parity_samples(config), config.export.check_batches
            mismatch = check_parity(reference, candidate, passport, samples, batches, tolerance)
            before, after = step_score(reference, passport), step_score(candidate, passport)
        require_score("the exported graph", after, before, tolerance, hint="another export.opset")
        figures = {
            "metric": task_of(passport.task).metric,
            "checkpoint": before,
            "onnx": after,
            "checkpoint_sha256": passport.checkpoint_sha256,
            "onnx_sha256": sha256_file(temporary),
            "max_mismatch": mismatch,
        }
    write_json(paths.metrics("export"), figures)
    say(f"export: {figures['metric']} {before:.4f} in PyTorch, {after:.4f} in ONNX; {mismatch:.6f} of outputs differ")


if __name__ == "__main__":
    run_stage(export)
