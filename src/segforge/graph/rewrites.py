"""Rewrites of an ONNX graph that keep its values, and the simplifiers that follow them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segforge.errors import SegforgeError, unknown_name
from segforge.graph.interface import strip_traces


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The small tensors whose values are in the file: initialisers and `Constant` nodes, by name."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if np.prod(t.dims) <= 64}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def require_constant_pads(model: onnx.ModelProto, source: Path) -> None:
    """Raise `SegforgeError` naming every `Pad` whose pads are computed at run time."""
    known = constants(model)
    computed = [n.name for n in model.graph.node if n.op_type == "Pad" and len(n.input) > 1 and n.input[1] not in known]
    if computed:
        problem = f"{source} pads by computed amounts in {', '.join(computed)}"
        wanted = "constant pads: a computed one is refused or mishandled by several runtimes"
        raise SegforgeError(problem, expected=wanted, hint="pad by sizes that are known at export")


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


def simplified(original: onnx.ModelProto, simplifier: str) -> onnx.ModelProto:
    """The graph after the rewrites of this package and the folding of `simplifier`; `original` stays as it is.

    The rewrites come first: neither simplifier can know sizes that the exporter computes next to the
    dynamic batch. Raises `SegforgeError` for a simplifier that is not in `SIMPLIFIERS`.
    """
    if simplifier not in SIMPLIFIERS:
        raise unknown_name("export.simplifier", simplifier, SIMPLIFIERS)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for rewrite in (fix_resize_sizes, pool_means, flatten_argmax):
        rewrite(model)
    model = SIMPLIFIERS[simplifier](model)
    strip_traces(model)
    del model.metadata_props[:]  # onnxsim notes there what it was asked for and every node that it removed
    model.metadata_props.extend(original.metadata_props)
    return model


def _onnxsim(model: onnx.ModelProto) -> Any:
    """What onnxsim makes of it, unchecked: the stage compares outputs on real images, not on random ones.

    Without its shape inference, which loses the batch's name after a `Resize` with axes, and its proofs, which need z3.
    """
    import onnxsim  # here, because it imports torch where that is installed

    return onnxsim.simplify(model, check_n=0, skip_shape_inference=True, certify=False)[0]


def _onnxslim(model: onnx.ModelProto) -> Any:
    """What onnxslim makes of it, without its shape inference, which takes `Resize` with axes for one of four sizes."""
    import onnxslim

    return onnxslim.slim(model, no_shape_infer=True)


SIMPLIFIERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"onnxsim": _onnxsim, "onnxslim": _onnxslim}
