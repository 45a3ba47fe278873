"""The least time a graph can take here: operations and bytes of each node against the measured ceilings.

A node's limit is the larger of operations / rate and bytes / bandwidth (the roofline of Williams,
Waterman and Patterson, CACM 2009); the graph's is their sum. Every choice errs towards less time:
what an engine can fuse moves nothing, and every product runs at the best product's rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from segforge.timing.ceilings import MIB, Ceilings

# What an engine does on values in registers or by an address: no memory traffic of its own.
UNARY = {"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "Erf"} | {
    *("Cast", "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Neg", "Exp", "Sqrt")
}
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Concat", "Constant", "Shape"} | {
    *("Gather", "Slice", "Split", "Expand")
}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min"}  # fused: reads its smaller operand, such as the residual
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class LayerLimit:
    """One node: operations, bytes moved and the least microseconds for them."""

    node: str
    operator: str
    operations: float
    moved: float  # bytes
    limit_us: float

    def row(self) -> dict[str, Any]:
        """A row of layers.csv."""
        return {
            "node": self.node,
            "operator": self.operator,
            "mflop": round(self.operations / 1e6, 3),
            "mib": round(self.moved / MIB, 4),
            "limit_us": round(self.limit_us, 2),
        }


class _Graph:
    """Shapes and types of every tensor at one batch, and who makes and takes it."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        del fixed.graph.value_info[:]
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        for value in fixed.graph.input:
            first = value.type.tensor_type.shape.dim[0]
            if first.dim_param or not first.dim_value:
                first.dim_value = batch
        inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, np.dtype[Any]] = {}
        self.weights = {tensor.name for tensor in inferred.initializer}
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
            self.types[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        for initializer in inferred.initializer:
            self.shapes[initializer.name] = tuple(initializer.dims)
            self.types[initializer.name] = helper.tensor_dtype_to_np_dtype(initializer.data_type)
        self.nodes = list(inferred.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def elements(self, name: str) -> int:
        """The number of values of a tensor; 0 when its shape is unknown."""
        return prod(self.shapes[name]) if name in self.shapes else 0

    def width(self, name: str, float_bytes: int) -> int:
        """Bytes per value as an engine stores the tensor: behind Q/DQ that of the quantised type."""
        maker = self.maker.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return self.types[maker.input[0]].itemsize
        takers = self.takers.get(name, [])
        if takers and all(taker.op_type in UNARY for taker in takers):
            if all(taker.op_type == "QuantizeLinear" for taker in takers):
                return 1
            if len(takers) == 1:
                return self.width(takers[0].output[0], float_bytes)
        kind = self.types.get(name, np.dtype(np.float32))
        return float_bytes if kind.name in FLOATS else kind.itemsize

    def quantised(self, node: onnx.NodeProto) -> bool:
        """Both factors of the product come out of a DequantizeLinear."""
        makers = [self.maker.get(name) for name in node.input[:2]]
        return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    def bytes_of(self, names: Sequence[str], float_bytes: int) -> float:
        return float(sum(self.elements(name) * self.width(name, float_bytes) for name in names if name))


def _operations(graph: _Graph, node: onnx.NodeProto) -> float:
    """Multiplications and additions; two per multiply-accumulate, one per value elsewhere."""
    out = graph.elements(node.output[0])
    if node.op_type == "Conv":
        return 2.0 * out * prod(graph.shapes.get(node.input[1], (0,))[1:])
    if node.op_type == "ConvTranspose":
        return 2.0 * graph.elements(node.input[0]) * prod(graph.shapes.get(node.input[1], (0,))[1:])
    if node.op_type in ("MatMul", "Gemm"):
        left = graph.shapes.get(node.input[0]) or (0,)
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2.0 * out * left[0 if transposed else -1]
    return float(max([out, *(graph.elements(name) for name in node.input if name not in graph.weights)]))


def _moved(graph: _Graph, node: onnx.NodeProto, float_bytes: int) -> float:
    if node.op_type in UNARY or node.op_type in VIEWS:
        return 0.0
    if node.op_type in BINARY:
        return min(graph.bytes_of([name], float_bytes) for name in node.input)
    return graph.bytes_of([*node.input, *node.output], float_bytes)


def layer_limits(model: onnx.ModelProto, batch: int, precision: str, ceilings: Ceilings) -> list[LayerLimit]:
    """The limit of every node that costs anything, in graph order, at `batch`.

    In an int8 graph tensors behind Q/DQ count one byte, and nodes that stay float count at the fp32
    rate. A tensor without a known shape counts nothing, so that the sum stays a lower bound.
    """
    graph = _Graph(model, batch)
    float_bytes = 2 if precision in ("bf16", "fp16") else 4
    float_rate = "fp32" if precision in ("int8", "fp8") else precision
    layers = []
    for node in graph.nodes:
        if node.op_type in VIEWS:
            continue
        operations, moved = _operations(graph, node), _moved(graph, node, float_bytes)
        rate = ceilings.operations_per_s(precision if graph.quantised(node) else float_rate)
        if node.op_type in UNARY or all(name in graph.weights for name in node.input):
            operations = 0.0  # fused, or folded when the engine is built
        seconds = max(operations / rate, moved / ceilings.bytes_per_s(moved))
        if seconds > 0:
            layers.append(LayerLimit(node.name or node.output[0], node.op_type, operations, moved, seconds * 1e6))
    return layers


def limit_ms(layers: Sequence[LayerLimit]) -> float:
    """The limit of the whole graph in milliseconds."""
    return sum(layer.limit_us for layer in layers) / 1000
