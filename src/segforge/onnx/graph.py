"""Checks and rewrites of an ONNX graph that keep its values: no traces, no computed sizes, plain operators."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segforge.errors import SegforgeError
from segforge.onnx.metadata import PANOPTIC_OUTPUTS, OnnxMetadata


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter says about its own run: stack traces and names of Python modules.

    They hold paths of this machine, and a file that holds them differs from clone to clone.
    """
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (model, graph, *graph.node, *values):
        item.doc_string = ""
    for item in (graph, *graph.node, *values):
        del item.metadata_props[:]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The small tensors whose values are in the file: initialisers and `Constant` nodes, by name."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if np.prod(t.dims) <= 64}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def require_interface(model: onnx.ModelProto, metadata: OnnxMetadata, source: Path) -> None:
    """Raise `SegforgeError` unless the inputs and outputs are those that the metadata describes."""
    m = metadata
    sizes = (m.height, m.width, 3) if m.input_layout == "nhwc_uint8" else (3, m.height, m.width)
    dtype = "UINT8" if m.input_layout == "nhwc_uint8" else "FLOAT"
    batch = "batch" if m.batch_max > m.batch_min else str(m.batch_max)
    outputs = ", ".join(
        f"{row['name']} {_onnx_name(row['dtype'])}[{', '.join([batch, *map(str, row['shape'])])}]" for row in m.outputs
    )
    expected = f"inputs: images {dtype}[{batch}, {', '.join(map(str, sizes))}]; outputs: {outputs}"
    fixed = _fixed_output(m)
    if fixed and fixed not in m.outputs:
        raise SegforgeError(f"{source} gives {m.outputs}", expected=f"{fixed}", hint="run export of this variant again")
    initialisers = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initialisers]
    found = f"inputs: {_signature(inputs)}; outputs: {_signature(model.graph.output)}"
    if found != expected:
        raise SegforgeError(
            f"{source} has {found}", expected=expected, hint="run export and simplify of this variant again"
        )


def output_names(metadata: OnnxMetadata) -> list[str]:
    """What the outputs of a network of this task and tail are called, in their order."""
    if metadata.task == "panoptic":
        return list(PANOPTIC_OUTPUTS)
    return ["ids"] if metadata.task == "semantic" and metadata.tail == "argmax" else ["logits"]


def outputs_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The outputs as `OnnxMetadata.outputs` has them."""
    return [
        {
            "name": value.name,
            "dtype": helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            "shape": [d.dim_value for d in value.type.tensor_type.shape.dim][1:],
        }
        for value in model.graph.output
    ]


def _fixed_output(m: OnnxMetadata) -> dict[str, Any] | None:
    """The output whose shape follows from the labels, where there is one."""
    size = [m.output_height, m.output_width]
    if m.task == "classification":
        return {"name": "logits", "dtype": "float32", "shape": [len(m.classes)]}
    if m.task == "panoptic":
        return {"name": "stuff_ids", "dtype": "uint8", "shape": size}
    if m.tail == "argmax":
        return {"name": "ids", "dtype": "uint8", "shape": size}
    return {"name": "logits", "dtype": "float32", "shape": [len(m.classes), *size]} if m.resize == "graph" else None


def _onnx_name(dtype: str) -> str:
    return str(onnx.TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))


def _signature(values: Iterable[onnx.ValueInfoProto]) -> str:
    texts = []
    for value in values:
        tensor = value.type.tensor_type
        first, *rest = [str(d.dim_value) if d.HasField("dim_value") else "" for d in tensor.shape.dim] or [""]
        sizes = ", ".join([first or "batch", *(size or "?" for size in rest)])
        texts.append(f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)}[{sizes}]")
    return ", ".join(texts) or "(none)"


def require_constant_pads(model: onnx.ModelProto, source: Path) -> None:
    """Raise `SegforgeError` naming every `Pad` whose pads are computed at run time."""
    known = constants(model)
    computed = [n.name for n in model.graph.node if n.op_type == "Pad" and len(n.input) > 1 and n.input[1] not in known]
    if computed:
        raise SegforgeError(
            f"{source} pads by computed amounts in {', '.join(computed)}",
            expected="constant pads: a computed one is refused or mishandled by several runtimes",
            hint="write the padding of the architecture with sizes that are known at export",
        )


def fix_resize_sizes(model: onnx.ModelProto) -> None:
    """Give each `Resize` of two axes constants for the sizes that it computes but that are known.

    The exporter computes [batch, channels, height, width] from the input's shape at run time. Whole
    ratios become `scales`, the form that ONNX Runtime can bring to channels-last (it breaks on
    `axes` there); others `sizes` of the two axes alone (opset 18).
    """
    known, shapes = constants(model), _shapes(model)
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3] or node.input[3] in known:
            continue
        before, after = (shapes.get(name, [0] * 4)[2:] for name in (node.input[0], node.output[0]))
        if 0 in (*before, *after):
            continue
        name = f"{node.name}_size"
        if any(new % old for old, new in zip(before, after, strict=True)):
            value = np.array(after, np.int64)
            node.input[3] = name
            node.attribute.append(helper.make_attribute("axes", [2, 3]))
        else:
            value = np.array([1, 1, *(new // old for old, new in zip(before, after, strict=True))], np.float32)
            node.input[2] = name
            del node.input[3:]
        model.graph.initializer.append(numpy_helper.from_array(value, name))


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shape of each four-dimensional value; 0 where a dimension is not fixed."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return {name: shape for name, shape in shapes.items() if len(shape) == 4}


def pool_means(model: onnx.ModelProto) -> None:
    """Write each mean over height and width as `GlobalAveragePool`, which runtimes can quantise."""
    known, shapes = constants(model), _shapes(model)
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or node.input[0] not in shapes or len(node.input) < 2:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = sorted(int(axis) % 4 for axis in np.ravel(known.get(node.input[1], np.array([]))))
        if axes == [2, 3] and attributes.get("keepdims", 1) == 1:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def flatten_argmax(model: onnx.ModelProto) -> None:
    """Run each argmax over channels on [batch, channels, height * width].

    OpenVINO keeps four dimensions channels-last after a resize and then takes 1.2 times as long for
    the whole of an int8 network; three dimensions bring it back to a plane per class.
    """
    shapes = _shapes(model)
    for node in [n for n in model.graph.node if n.op_type == "ArgMax" and n.input[0] in shapes]:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        _, channels, height, width = shapes[node.input[0]]
        if attributes.get("axis", 0) != 1 or attributes.get("keepdims", 1) or not channels * height * width:
            continue
        source, target = node.input[0], node.output[0]
        flat, ids, at = f"{source}_flat", f"{target}_flat", list(model.graph.node).index(node)
        for name, shape in ((f"{flat}_shape", [0, channels, height * width]), (f"{ids}_shape", [0, height, width])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
        node.input[0], node.output[0] = flat, ids
        model.graph.node.insert(at, helper.make_node("Reshape", [source, f"{flat}_shape"], [flat], f"{flat}_reshape"))
        model.graph.node.insert(at + 2, helper.make_node("Reshape", [ids, f"{ids}_shape"], [target], f"{ids}_reshape"))


def channels_last_argmax(model: onnx.ModelProto) -> None:
    """Run resize and argmax over channels, as `flatten_argmax` leaves them, on [batch, height, width, channels].

    ONNX Runtime's int8 convolutions are channels-last: this saves it two transposes, and its resize
    and argmax read neighbouring values, 1.1 times faster over the whole of an int8 network.
    """
    graph, known = model.graph, constants(model)
    producers = {name: node for node in graph.node for name in node.output}
    for argmax in [n for n in graph.node if n.op_type == "ArgMax"]:
        reshape = producers.get(argmax.input[0])
        resize = producers.get(reshape.input[0]) if reshape and reshape.op_type == "Reshape" else None
        axes = [a for a in resize.attribute if a.name == "axes"] if resize and resize.op_type == "Resize" else []
        if reshape is None or resize is None or not axes or [*axes[0].ints] != [2, 3]:
            continue
        batch, channels, pixels = known[reshape.input[1]]
        last, shape = f"{resize.input[0]}_last", f"{reshape.input[1]}_last"
        transpose = helper.make_node("Transpose", [resize.input[0]], [last], f"{last}_transpose", perm=[0, 2, 3, 1])
        graph.node.insert(list(graph.node).index(resize), transpose)
        graph.initializer.append(numpy_helper.from_array(np.array([batch, pixels, channels], np.int64), shape))
        resize.input[0], reshape.input[1] = last, shape
        axes[0].ints[:] = [1, 2]
        next(a for a in argmax.attribute if a.name == "axis").i = 2
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
