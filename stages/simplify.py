"""Simplify one exported network: python stages/simplify.py model=… backbone=… dataset=… export.simplifier=onnxsim."""

from segforge.config.network import NetworkConfig
from segforge.conversion.parity import check_parity, parity_samples, require_score, step_score
from segforge.errors import SegforgeError
from segforge.files import atomic_file, read_json, sha256_file, write_json
from segforge.graph.file import load_own, save_onnx
from segforge.graph.interface import require_interface
from segforge.graph.rewrites import require_constant_pads, simplified
from segforge.runtimes.core.onnx import OnnxRunner
from segforge.stage import run_stage
from segforge.tasks import task_of
from segforge.terminal import say


def simplify(config: NetworkConfig) -> None:
    """Write `simplified.onnx`: passport and dynamic batch kept, no computed sizes, plain operators.

    Raises `SegforgeError`, and writes nothing, when the input is not what its passport and export's
    figures say, when a `Pad` with computed pads is left, when outputs on real images differ from
    `model.onnx` by more than export has left of `export.tolerance`, or when the score leaves the
    checkpoint's by more than `export.tolerance`.
    """
    paths, tolerance = config.paths, config.export.tolerance
    made_by = paths.command("export")
    say(f"simplify: {paths.onnx} -> {paths.simplified}")
    original, passport = load_own(paths.onnx, config.variant, made_by=made_by)
    require_interface(original, passport, paths.onnx)
    exported = read_json(paths.metrics("export"), made_by=made_by)
    onnx_sha256 = sha256_file(paths.onnx)
    if exported["onnx_sha256"] != onnx_sha256:
        problem = f"{paths.metrics('export')} is of another file than {paths.onnx}"
        raise SegforgeError(problem, expected="both from one run of export", hint=made_by)
    model = simplified(original, config.export.simplifier)
    require_interface(model, passport, paths.simplified)
    require_constant_pads(model, paths.simplified)
    with atomic_file(paths.simplified) as temporary:
        save_onnx(model, temporary)
        left = tolerance - exported["max_mismatch"]  # so much of it is spent already
        with OnnxRunner(paths.onnx) as reference, OnnxRunner(temporary) as candidate:
            samples, batches = parity_samples(config), config.export.check_batches
            mismatch = check_parity(reference, candidate, passport, samples, batches, left)
            score = step_score(candidate, passport)
        require_score("the simplified graph", score, exported["checkpoint"], tolerance, hint=made_by)
        figures = {
            "metric": task_of(passport.task).metric,
            "simplified": score,
            "simplifier": config.export.simplifier,
            "onnx_sha256": onnx_sha256,
            "simplified_sha256": sha256_file(temporary),
            "nodes_before": len(original.graph.node),
            "nodes_after": len(model.graph.node),
            "max_mismatch": mismatch,
        }
    write_json(paths.metrics("simplify"), figures)
    say(f"simplify: {figures['nodes_before']} -> {figures['nodes_after']} nodes, {figures['metric']} {score:.4f}")


if __name__ == "__main__":
    run_stage(simplify)
