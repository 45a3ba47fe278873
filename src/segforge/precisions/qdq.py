"""Explicit Q/DQ: int8 weights and activations, through ONNX Runtime's own quantiser."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from segforge.config.engine import Precision, Target
from segforge.errors import SegforgeError
from segforge.graph.file import embed_passport
from segforge.graph.interface import strip_traces
from segforge.graph.rewrites import channels_last_argmax
from segforge.passport import Passport
from segforge.precisions.calibrate import tensor_ranges

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PREPARING = ("Transpose", "Cast", "Mul", "Add")  # what export.input_layout=nhwc_uint8 puts before the network


def to_qdq(
    source: Path, passport: Passport, images: list[Path], precision: Precision, target: Target
) -> onnx.ModelProto:
    """The float ONNX file `source` with explicit Q/DQ: int8 weights, `target.activation` elsewhere.

    Ranges come from `images`. Operators of `precision.skip` and what comes after the last weights stay in float.
    Raises `SegforgeError` for a name that is no ONNX operator.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_static, save_tensors_data

    assert precision.calibration
    if unknown := ", ".join(sorted(name for name in precision.skip if not onnx.defs.has(name))):
        problem = f"precision.skip names {unknown}, which is no ONNX operator"
        raise SegforgeError(problem, expected="operators that shall stay in float", hint="precision.skip=[Conv]")
    model = onnx.load(str(source))
    kept = [node.name for node in model.graph.node if node.op_type in precision.skip]
    kept += [*float_nodes_after_last_weight(model), *(stems(model) if target.float_stem else [])]
    operators = sorted({node.op_type for node in model.graph.node})
    ranges = tensor_ranges(source, images, passport, precision.calibration, operators)
    share_concat_ranges(model, ranges)
    with TemporaryDirectory() as folder:
        prepared, cache, output = (Path(folder, name) for name in ("prepared.onnx", "ranges.json", "typed.onnx"))
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)  # or it warns
        save_tensors_data(ranges, cache)
        activation = QuantType.QUInt8 if target.activation == "uint8" else QuantType.QInt8
        types = {"activation_type": activation, "weight_type": QuantType.QInt8, "per_channel": precision.per_channel}
        calibrated = {"calibrate_method": ranges.calibration_method, "calibration_cache_path": cache}
        quantize_static(prepared, output, **types, nodes_to_exclude=kept, **calibrated)
        typed = onnx.load(str(output))
    if target.argmax == "channels_last":
        channels_last_argmax(typed)
    del typed.graph.value_info[:]
    del typed.metadata_props[:]
    strip_traces(typed)
    embed_passport(typed, passport)
    return typed


def float_nodes_after_last_weight(model: onnx.ModelProto) -> list[str]:
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
    first = [node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in images]
    return [node.name for node in first if max(sizes.get(node.input[1], (0,))) > 3]


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
            widest = max(known, key=lambda name: float(np.max(ranges[name].range_value[1])), default="")
            for name in known:
                ranges[name] = ranges[widest]
