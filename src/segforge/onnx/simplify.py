"""The exported graph with everything folded that is known before it runs; the same outputs, checked."""

import onnx
import onnxslim

from segforge.config import METRIC_OF_TASK, NetworkConfig
from segforge.datasets.base import load_index
from segforge.errors import SegforgeError
from segforge.files import atomic_file, read_json, sha256_file, write_json
from segforge.layout import VariantPaths
from segforge.onnx.graph import (
    fix_resize_sizes,
    flatten_argmax,
    pool_means,
    require_constant_pads,
    require_interface,
    strip_traces,
)
from segforge.onnx.metadata import embed_metadata, load_onnx, metadata_of, require_variant, save_onnx
from segforge.onnx.parity import SCORE_BATCH, check_parity, check_samples, require_score
from segforge.progress import say
from segforge.runtimes import onnx_runner
from segforge.scores.evaluate import score_runner


def simplify(config: NetworkConfig) -> None:
    """Write `simplified.onnx`: metadata and dynamic batch kept, no computed sizes, plain operators.

    Raises `SegforgeError`, and writes nothing, when the input is not what its metadata and export's
    figures say, when a `Pad` with computed pads is left, when outputs on real images differ from
    `model.onnx` by more than export has left of `export.tolerance`, or when the score leaves the
    checkpoint's by more than `export.tolerance`.
    """
    paths = VariantPaths(config.variant)
    made_by = paths.command("export")
    say(f"simplify: {paths.onnx} -> {paths.simplified}")
    original = load_onnx(paths.onnx, made_by=made_by)
    metadata = metadata_of(original, paths.onnx)
    require_variant(metadata, config.variant, paths.onnx, made_by=made_by)
    require_interface(original, metadata, paths.onnx)
    exported = read_json(paths.metrics("export"), made_by=made_by)
    if exported["onnx_sha256"] != sha256_file(paths.onnx):
        raise SegforgeError(
            f"{paths.metrics('export')} is of another file than {paths.onnx}",
            expected="both from one run of export",
            hint=made_by,
        )
    model = simplified(original)
    embed_metadata(model, metadata)
    require_interface(model, metadata, paths.simplified)
    require_constant_pads(model, paths.simplified)
    scored = load_index(metadata.dataset).split(metadata.task, metadata.score_split)
    with atomic_file(paths.simplified) as temporary:
        save_onnx(model, temporary)
        tolerance = config.export.tolerance
        with onnx_runner(paths.onnx) as reference, onnx_runner(temporary) as candidate:
            mismatch = check_parity(
                reference,
                candidate,
                metadata,
                check_samples(config),
                config.export.check_batches,
                tolerance - exported["max_mismatch"],  # so much of it is spent already
            )
            score = score_runner(candidate, metadata, scored, min(SCORE_BATCH, metadata.batch_max)).result["score"]
        require_score("the simplified graph", score, exported["checkpoint"], tolerance, hint=made_by)
        figures = {
            "metric": METRIC_OF_TASK[metadata.task],
            "simplified": score,
            "onnx_sha256": sha256_file(paths.onnx),
            "simplified_sha256": sha256_file(temporary),
            "nodes_before": len(original.graph.node),
            "nodes_after": len(model.graph.node),
            "max_mismatch": mismatch,
        }
    write_json(paths.metrics("simplify"), figures)
    say(f"simplify: {figures['nodes_before']} -> {figures['nodes_after']} nodes, {figures['metric']} {score:.4f}")


def simplified(original: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after the rewrites of this package and onnxslim's folding; `original` stays as it is.

    onnxslim rather than onnxsim: both find the same on graphs of this exporter, which has folded
    most already, and onnxslim is plain Python on the very same `onnx` package.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original)
    fix_resize_sizes(model)
    pool_means(model)
    flatten_argmax(model)
    # Its own shape inference takes `Resize` with axes for one with four sizes, and fixes the batch wrongly.
    slim: onnx.ModelProto = onnxslim.slim(model, no_shape_infer=True)
    strip_traces(slim)
    return slim
