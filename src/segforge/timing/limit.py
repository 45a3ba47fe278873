"""The least time a graph can take here: operations and bytes of each node against the measured ceilings.

A node's limit is the larger of operations / rate and bytes / bandwidth (the roofline of Williams,
Waterman and Patterson, CACM 2009); the graph's is their sum. Every choice errs towards less time:
what an engine can fuse moves nothing, and every product runs at the best product's rate.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from segforge import layout
from segforge.config.engine import Precision
from segforge.errors import SegforgeError
from segforge.files import read_json

MIB = 2**20


@dataclass(frozen=True)
class Ceilings:
    """Of one device: operations a second by precision, bytes a second by working set."""

    device: str
    gflops: Mapping[str, float]
    copy_gib_s: Mapping[str, float]  # working set in MiB -> GiB read plus written per second

    def operations_per_s(self, precision: str) -> float:
        """The highest matrix rate in `precision`; raises `SegforgeError` when it was not measured."""
        if precision not in self.gflops:
            problem = f"{layout.ceilings(self.device)} has no rate for {precision}"
            hint = f"install the runtime that needs it, then python stages/ceilings.py device={self.device}"
            raise SegforgeError(problem, expected=f"one of {', '.join(self.gflops)}", hint=hint)
        return self.gflops[precision] * 1e9

    def bytes_per_s(self, moved: float) -> float:
        """The bandwidth for a node that moves `moved` bytes: of the largest measured set within them."""
        sets = sorted((float(mib) * MIB, rate) for mib, rate in self.copy_gib_s.items())
        within = [rate for size, rate in sets if size <= moved]
        return (within[-1] if within else sets[0][1]) * 2**30


def read_ceilings(device: str) -> Ceilings:
    """The ceilings of a device; raises `SegforgeError` when they were not measured."""
    raw = read_json(layout.ceilings(device), made_by=f"python stages/ceilings.py device={device}")
    return Ceilings(device, raw["gflops"], raw["copy_gib_s"])


# What an engine does on values in registers or by an address: no memory traffic of its own.
ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu"}
UNARY = {*ACTIVATIONS, "Cast", "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Neg", "Exp", "Sqrt", "Erf"}
PARTS = {"Gather", "Slice", "Split", "Expand"}
VIEWS = {*PARTS, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Concat", "Constant", "Shape"}
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
        work = {"mflop": round(self.operations / 1e6, 3), "mib": round(self.moved / MIB, 4)}
        return {"node": self.node, "operator": self.operator, **work, "limit_us": round(self.limit_us, 2)}


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
            first.dim_value = first.dim_value or batch
        inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
        self.shapes: dict[str, tuple[int, ...]] = defaultdict(lambda: (0,))  # so that the unknown counts nothing
        self.types: dict[str, np.dtype[Any]] = defaultdict(lambda: np.dtype(np.float32))
        self.weights = {tensor.name for tensor in inferred.initializer}
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
            self.types[value.name] = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        for weight in inferred.initializer:
            self.shapes[weight.name] = tuple(weight.dims)
            self.types[weight.name] = helper.tensor_dtype_to_np_dtype(weight.data_type)
        self.nodes = list(inferred.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)

    def dequantised(self, name: str) -> bool:
        """Whether the tensor comes out of a DequantizeLinear."""
        return name in self.maker and self.maker[name].op_type == "DequantizeLinear"

    def width(self, name: str, float_bytes: int) -> int:
        """Bytes per value as an engine stores the tensor: behind Q/DQ that of the quantised type."""
        if self.dequantised(name):
            return self.types[self.maker[name].input[0]].itemsize
        takers = self.takers[name]
        if takers and all(taker.op_type in UNARY for taker in takers):
            if all(taker.op_type == "QuantizeLinear" for taker in takers):
                return 1
            if len(takers) == 1:
                return self.width(takers[0].output[0], float_bytes)
        return float_bytes if self.types[name].name in FLOATS else self.types[name].itemsize

    def bytes_of(self, names: Sequence[str], float_bytes: int) -> float:
        return float(sum(prod(self.shapes[name]) * self.width(name, float_bytes) for name in names if name))


def _operations(graph: _Graph, node: onnx.NodeProto) -> float:
    """Multiplications and additions; two per multiply-accumulate, one per value elsewhere."""
    out = prod(graph.shapes[node.output[0]])
    if node.op_type in ("Conv", "ConvTranspose"):
        values = out if node.op_type == "Conv" else prod(graph.shapes[node.input[0]])
        return 2.0 * values * prod(graph.shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2.0 * out * graph.shapes[node.input[0]][0 if transposed else -1]
    return float(max([out, *(prod(graph.shapes[name]) for name in node.input if name not in graph.weights)]))


def _moved(graph: _Graph, node: onnx.NodeProto, float_bytes: int) -> float:
    if node.op_type in UNARY or node.op_type in VIEWS:
        return 0.0
    if node.op_type in BINARY:
        return min(graph.bytes_of([name], float_bytes) for name in node.input)
    return graph.bytes_of([*node.input, *node.output], float_bytes)


def layer_limits(model: onnx.ModelProto, batch: int, precision: Precision, ceilings: Ceilings) -> list[LayerLimit]:
    """The limit of every node that costs anything, in graph order, at `batch`.

    Tensors behind Q/DQ count the bytes of their type, and nodes that stay float the rate and the bytes
    that the precision's row names. A tensor without a known shape counts nothing, so that the sum stays a lower bound.
    """
    graph, row, layers = _Graph(model, batch), precision.limit, []
    for node in graph.nodes:
        if node.op_type in VIEWS:
            continue
        operations, moved = _operations(graph, node), _moved(graph, node, row.float_bytes)
        quantised = all(map(graph.dequantised, node.input[:2]))
        rate = ceilings.operations_per_s(precision.arithmetic if quantised else row.float_ceiling)
        if node.op_type in UNARY or all(name in graph.weights for name in node.input):
            operations = 0.0  # fused, or folded when the engine is built
        seconds = max(operations / rate, moved / ceilings.bytes_per_s(moved))
        if seconds > 0:
            layers.append(LayerLimit(node.name or node.output[0], node.op_type, operations, moved, seconds * 1e6))
    return layers


def limit_ms(layers: Sequence[LayerLimit]) -> float:
    """The limit of the whole graph in milliseconds."""
    return sum(layer.limit_us for layer in layers) / 1000
