"""The limit of graphs that one can work out by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_engine import engine_config, tiny_onnx

from segforge import layout
from segforge.errors import SegforgeError
from segforge.files import write_json
from segforge.timing.limit import MIB, Ceilings, layer_limits, limit_ms, read_ceilings

ROOT = Path(__file__).resolve().parents[2]
FP32, BF16, INT8 = (
    engine_config(ROOT, f"precision={name}", "target=cpu-openvino").precision for name in ("fp32", "bf16", "int8")
)
CEILINGS = Ceilings(
    "cpu", gflops={"fp32": 1.0, "int8": 4.0, "bf16": 2.0}, copy_gib_s={"1": 1.0, "16": 0.5, "256": 0.25}
)
COMPUTE_BOUND = Ceilings("cpu", gflops={"fp32": 1e-3, "int8": 4e-3, "bf16": 2e-3}, copy_gib_s={"1": 1e6})


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], output: str, *weights: onnx.TensorProto
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = helper.make_graph(
        nodes, "g", infos, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weight(name: str, *shape: int, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def test_a_convolution_by_hand() -> None:
    """3 -> 8 channels, 3x3, on 10 x 20 at batch 2: 2 * 2*8*10*20 * 3*9 operations."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1])
    model = graph([node], {"x": ["batch", 3, 10, 20]}, "y", weight("w", 8, 3, 3, 3), weight("b", 8))
    (layer,) = layer_limits(model, 2, FP32, CEILINGS)
    assert layer.operations == 2 * (2 * 8 * 10 * 20) * 27
    moved = 4 * (2 * 3 * 200 + 8 * 27 + 8 + 2 * 8 * 200)
    assert layer.moved == moved
    assert layer.limit_us == pytest.approx(max(layer.operations / 1e9, moved / 2**30) * 1e6)
    (slow,) = layer_limits(model, 2, FP32, COMPUTE_BOUND)
    assert slow.limit_us == pytest.approx(layer.operations)  # at 1e6 operations a second
    assert layer.row() == {
        "node": "conv",
        "operator": "Conv",
        "mflop": round(layer.operations / 1e6, 3),
        "mib": round(moved / MIB, 4),
        "limit_us": round(layer.limit_us, 2),
    }


def test_a_depthwise_and_a_strided_convolution() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "v"], ["z"], "strided", strides=[2, 2]),
    ]
    model = graph(nodes, {"x": ["batch", 6, 8, 8]}, "z", weight("w", 6, 1, 3, 3), weight("v", 4, 6, 1, 1))
    depthwise, strided = layer_limits(model, 1, FP32, CEILINGS)
    assert depthwise.operations == 2 * 6 * 64 * 9
    assert strided.operations == 2 * 4 * 16 * 6


def test_a_product_by_hand() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
        helper.make_node("Gemm", ["y", "v"], ["z"], "g", transB=1),
    ]
    model = graph(nodes, {"x": ["batch", 100]}, "z", weight("w", 100, 30), weight("v", 7, 30))
    product, gemm = layer_limits(model, 4, FP32, CEILINGS)
    assert product.operations == 2 * 4 * 100 * 30
    assert product.moved == 4 * (400 + 3000 + 120)
    assert gemm.operations == 2 * 4 * 30 * 7


def test_what_fuses_moves_nothing_but_a_residual() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Add", ["r", "x"], ["s"], "add"),
        helper.make_node("HardSwish", ["s"], ["h"], "swish"),
        helper.make_node("Concat", ["h", "x"], ["c"], "concat", axis=1),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Mul", ["c", "p"], ["m"], "scale"),
    ]
    model = graph(nodes, {"x": ["batch", 4, 5, 5]}, "m", weight("w", 4, 4, 1, 1))
    layers = {layer.node: layer for layer in layer_limits(model, 1, FP32, CEILINGS)}
    assert set(layers) == {"conv", "add", "pool", "scale"}
    assert layers["add"].moved == 4 * 100  # the residual
    assert layers["scale"].moved == 4 * 8  # one factor per channel
    assert layers["pool"].moved == 4 * (200 + 8)
    assert limit_ms(list(layers.values())) == pytest.approx(sum(v.limit_us for v in layers.values()) / 1000)


def quantised() -> onnx.ModelProto:
    """Q/DQ on input and weights, a convolution, Relu, Q/DQ, then a float pool."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq"),
        helper.make_node("DequantizeLinear", ["wq", "s", "zw"], ["w"], "dqw"),
        helper.make_node("Conv", ["xd", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"], "q2"),
        helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["rd"], "dq2"),
        helper.make_node("Conv", ["rd", "f"], ["y"], "float_weights"),
    ]
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero, zero_weight = (numpy_helper.from_array(np.array(0, t), n) for t, n in ((np.uint8, "z"), (np.int8, "zw")))
    extra = (scale, zero, zero_weight, weight("wq", 6, 4, 1, 1, dtype=np.int8), weight("f", 2, 6, 1, 1))
    return graph(nodes, {"x": ["batch", 4, 10, 10]}, "y", *extra)


def test_int8_counts_bytes_and_its_own_rate() -> None:
    conv, other = layer_limits(quantised(), 1, INT8, COMPUTE_BOUND)
    assert (conv.node, other.node) == ("conv", "float_weights")
    assert conv.moved == 400 + 24 + 600  # one byte each: input, weights, and the output behind Relu and Q
    assert conv.limit_us == pytest.approx(conv.operations / 4)
    assert other.moved == 600 + 4 * 12 + 4 * 200
    assert other.limit_us == pytest.approx(other.operations)  # not quantised: the float rate


def test_bf16_halves_the_bytes_and_takes_its_own_rate() -> None:
    single = layer_limits(tiny_onnx(), 1, FP32, COMPUTE_BOUND)
    half = layer_limits(tiny_onnx(), 1, BF16, COMPUTE_BOUND)
    assert half[0].moved == single[0].moved / 2
    assert half[0].limit_us == pytest.approx(single[0].limit_us / 2)
    assert half[-1].operator == "ArgMax"


def test_the_limit_grows_with_the_batch_but_weights_are_read_once() -> None:
    one, four = (layer_limits(tiny_onnx(), batch, FP32, CEILINGS)[0] for batch in (1, 4))
    assert four.operations == 4 * one.operations
    assert one.moved < four.moved < 4 * one.moved


def test_a_missing_rate_is_named() -> None:
    with pytest.raises(SegforgeError, match="no rate for bf16"):
        layer_limits(tiny_onnx(), 1, BF16, Ceilings("cpu", {"fp32": 1.0}, {"1": 1.0}))


def test_bandwidth_is_that_of_the_largest_set_within() -> None:
    assert CEILINGS.bytes_per_s(1000) == 2**30
    assert CEILINGS.bytes_per_s(MIB) == 2**30
    assert CEILINGS.bytes_per_s(20 * MIB) == 2**29
    assert CEILINGS.bytes_per_s(1000 * MIB) == 2**28


def test_ceilings_of_another_device_or_none(project: Path) -> None:
    with pytest.raises(SegforgeError, match=r"python stages/ceilings\.py device=cpu"):
        read_ceilings("cpu")
    write_json(layout.ceilings("cpu"), {"gflops": {"fp32": 1.0}, "copy_gib_s": {"1": 1.0}})
    assert read_ceilings("cpu").gflops == {"fp32": 1.0}
    with pytest.raises(SegforgeError, match=r"ceilings/h200\.json is missing(.|\n)*ceilings\.py device=h200"):
        read_ceilings("h200")
