"""The ONNX file in the numeric type of an engine: the same bytes for float types, explicit Q/DQ for int8."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from segforge.config import METRIC_OF_TASK, EngineConfig, Precision, Runtime
from segforge.datasets.base import load_index
from segforge.errors import SegforgeError
from segforge.files import atomic_file, sha256_file, write_json
from segforge.layout import EnginePaths, VariantPaths
from segforge.onnx.graph import channels_last_argmax, require_interface, strip_traces
from segforge.onnx.metadata import OnnxMetadata, embed_metadata, load_onnx, metadata_of, require_variant, save_onnx
from segforge.onnx.parity import SCORE_BATCH
from segforge.progress import say

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PREPARING = ("Transpose", "Cast", "Mul", "Add")  # what export.input_layout=nhwc_uint8 puts before the network


def quantize(config: EngineConfig) -> None:
    """Write `typed.onnx`, `calibration.json` and the typed graph's score.

    fp32 and bf16 are the bytes of `simplified.onnx`: their engines differ only in how they are
    built. int8 carries QuantizeLinear/DequantizeLinear pairs, calibrated on images of the training
    split. Raises `SegforgeError`, and writes nothing, for a foreign ONNX file or when a calibration
    image lies in the scored split.
    """
    from segforge.quantization.calibrate import choose_images
    from segforge.runtimes import onnx_runner
    from segforge.scores.evaluate import score_runner

    source = VariantPaths(config.variant).simplified
    paths = EnginePaths(config.variant, config.target.name, config.precision.name)
    say(f"quantize: {source} -> {paths.typed}")
    made_by = VariantPaths(config.variant).command("simplify")
    model = load_onnx(source, made_by=made_by)
    metadata = metadata_of(model, source)
    require_variant(metadata, config.variant, source, made_by=made_by)
    require_interface(model, metadata, source)
    calibration = config.precision.calibration
    listed: dict[str, Any] = {"dataset": metadata.dataset, "split": "", "images": [], "method": None, "seed": None}
    if calibration:
        listed = choose_images(metadata, calibration)
    with atomic_file(paths.typed) as temporary:
        if calibration:
            images = [Path(row["image"]) for row in listed["images"]]
            typed = to_int8(source, metadata, images, config.precision, config.target.runtime)
            save_onnx(typed, temporary)
        else:
            temporary.write_bytes(source.read_bytes())
        scored = load_index(metadata.dataset).split(metadata.task, metadata.score_split)
        with onnx_runner(temporary) as runner:
            score = score_runner(runner, metadata, scored, min(SCORE_BATCH, metadata.batch_max)).result["score"]
        figures = {
            "metric": METRIC_OF_TASK[metadata.task],
            "typed": score,
            "typed_sha256": sha256_file(temporary),
            "simplified_sha256": sha256_file(source),
            "calibration_images": len(listed["images"]),
        }
    write_json(paths.calibration, listed)
    write_json(paths.metrics("quantize"), figures)
    say(f"quantize: {config.precision.name} {figures['metric']} {score:.4f}")


def to_int8(
    source: Path, metadata: OnnxMetadata, images: list[Path], precision: Precision, runtime: Runtime
) -> onnx.ModelProto:
    """The float ONNX file `source` with explicit Q/DQ: int8 weights, `runtime.activation` elsewhere.

    Ranges come from `images`. `precision.skip` names operators that stay in float, and so does the
    `tail`. Raises `SegforgeError` for one that is never quantised.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    from segforge.quantization.calibrate import tensor_ranges

    assert precision.calibration
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    known = {*QDQRegistry, *QLinearOpsRegistry}
    unknown = sorted(set(precision.skip) - known)
    if unknown:
        raise SegforgeError(
            f"precision.skip names {', '.join(unknown)}, which nothing quantises",
            expected=f"some of {', '.join(sorted(known))}",
            hint="precision.skip=[Conv]",
        )
    operators = sorted(known - set(precision.skip))
    ranges = tensor_ranges(source, images, metadata, precision.calibration, operators)
    share_concat_ranges(model, ranges)
    quantizer = QDQQuantizer(
        model,
        precision.per_channel,
        False,  # reduce_range: 7-bit weights, for processors without VNNI
        QuantType.QInt8,
        QuantType.QUInt8 if runtime.activation == "uint8" else QuantType.QInt8,
        ranges,
        [],
        [*tail(model), *(stems(model) if runtime.float_stem else [])],
        operators,
        {},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    typed: onnx.ModelProto = quantizer.model.model
    if runtime.argmax == "channels_last":
        channels_last_argmax(typed)
    del typed.graph.value_info[:]
    strip_traces(typed)
    embed_metadata(typed, metadata)
    return typed


def tail(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes after which no operator with stored weights comes.

    Resize and argmax of logits; of a panoptic network all that chooses kernels and multiplies them
    with the features, where a small error changes what is found.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    read: set[str] = set()  # by a weighted operator, or by something that one reads
    names = []
    for node in reversed(model.graph.node):  # an exported graph is in topological order
        weighted = node.op_type in WEIGHTED and not stored.isdisjoint(node.input)
        if weighted or not read.isdisjoint(node.output):
            read.update(node.input)
        else:
            names.append(node.name)
    return names[::-1]


def stems(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions larger than 3x3 that read an input of the graph, straight or prepared."""
    images = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in PREPARING and not images.isdisjoint(node.input):
            images.update(node.output)
    sizes = {tensor.name: tuple(tensor.dims)[2:] for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[0] in images and max(sizes.get(node.input[1], (0,))) > 3
    ]


def share_concat_ranges(model: onnx.ModelProto, ranges: Any) -> None:
    """Widen the ranges of what a `Concat` joins to one range, so that joining is a plain copy.

    Only where every input comes from `Relu`, straight or through `Resize` (which keeps its input's
    scale): the quantiser drops an activation that the range itself enforces, which a widened range
    does for a lower bound of 0 and not for the upper bound of a `Clip`.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Concat":
            continue
        names = [*node.input, *node.output]
        for name in node.input:
            while name in producers and producers[name].op_type == "Resize":
                name = producers[name].input[0]
                names.append(name)
            if name not in producers or producers[name].op_type != "Relu":
                break
        else:
            known = [name for name in names if name in ranges]
            widest = max(
                (ranges[name] for name in known), key=lambda data: float(np.max(data.range_value[1])), default=None
            )
            for name in known:
                ranges[name] = widest
