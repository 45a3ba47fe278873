"""Typed graphs: the same bytes for float types; int8 from hashed training images that never meet the scored split."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_world import VARIANT, World, network

from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file, write_json
from segforge.graph.file import read_passport, save_onnx
from segforge.graph.rewrites import channels_last_argmax, fix_resize_sizes, flatten_argmax
from segforge.layout import VariantPaths
from segforge.precisions.qdq import float_nodes_after_last_weight, share_concat_ranges, stems
from segforge.runtimes.core.onnx import OnnxRunner


@pytest.fixture
def world(project: Path, composed: Callable[..., Any]) -> World:
    return World(composed)


def _int8(world: World, *words: str) -> Any:
    return world.quantize(world.config("int8", "precision.calibration.images=8", *words))


@pytest.mark.parametrize("words", [("fp32",), ("bf16", "target=cpu-openvino")])
def test_float_types_are_the_same_bytes_and_an_empty_list(world: World, words: tuple[str, ...]) -> None:
    paths = world.quantize(world.config(*words))
    assert paths.typed.read_bytes() == VariantPaths(VARIANT).simplified.read_bytes()
    assert read_json(paths.calibration, made_by="")["images"] == []
    assert read_json(paths.metrics("quantize"), made_by="")["typed"] == pytest.approx(world.checkpoint, abs=1e-9)


def test_int8_graph_list_and_score(world: World) -> None:
    paths = _int8(world)
    model = onnx.load(paths.typed)
    onnx.checker.check_model(model, full_check=True)
    stored = {t.name: t for t in model.graph.initializer}
    weights = [stored[n.input[0]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert TensorProto.INT8 in {t.data_type for t in weights}
    zeros = {stored[n.input[2]].data_type for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {TensorProto.UINT8}
    nearest = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "nearest_quantized")
    assert numpy_helper.to_array(stored[nearest.input[1]]).shape == (5,)  # a scale per output channel
    assert read_passport(paths.typed, made_by="") == read_passport(VariantPaths(VARIANT).simplified, made_by="")

    listed = read_json(paths.calibration, made_by="")
    assert (listed["dataset"], listed["split"], listed["method"], listed["seed"]) == ("shapes", "train", "minmax", 0)
    assert len(listed["images"]) == 8
    trained = set(read_passport(paths.typed, made_by="").train_images)
    for row in listed["images"]:
        assert sha256_file(Path(row["image"])) == row["sha256"]
        assert row["sha256"][:16] in trained
    figures = read_json(paths.metrics("quantize"), made_by="")
    assert figures["typed_sha256"] == sha256_file(paths.typed)
    assert figures["calibration_images"] == 8
    assert figures["typed"] > world.checkpoint - 0.03


def test_int8_is_the_same_again_and_follows_the_seed(world: World) -> None:
    first = _int8(world).typed.read_bytes()
    listed = _int8(world).calibration.read_bytes()
    assert _int8(world).typed.read_bytes() == first
    assert _int8(world, "precision.calibration.seed=1").calibration.read_bytes() != listed


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_calibrate(world: World, method: str) -> None:
    paths = _int8(world, f"precision.calibration.method={method}")
    assert read_json(paths.metrics("quantize"), made_by="")["typed"] > world.checkpoint - 0.1


def test_calibration_on_dark_noise_scores_lower_than_on_training_images(world: World) -> None:
    right = read_json(_int8(world).metrics("quantize"), made_by="")["typed"]
    random, rows = np.random.default_rng(0), []
    for i in range(8):
        path = Path(f"noise-{i}.png")
        Image.fromarray(random.integers(0, 24, (64, 80, 3), dtype=np.uint8)).save(path)
        rows.append({"image": str(path), "sha256": sha256_file(path)})
    write_json(Path("noise.json"), {"images": rows})
    wrong = read_json(_int8(world, "precision.calibration.file=noise.json").metrics("quantize"), made_by="")["typed"]
    assert wrong < right - 0.1


def test_a_list_that_meets_the_scored_split_is_refused_by_content(world: World) -> None:
    scored = load_index("shapes").split("semantic", "test")[3].image
    copy = Path("data/shapes/train/innocent.png")
    copy.write_bytes(scored.read_bytes())
    write_json(Path("list.json"), {"images": [{"image": str(copy), "sha256": sha256_file(copy)}]})
    with pytest.raises(SegforgeError, match="the scored split: 1 images are in both"):
        _int8(world, "precision.calibration.file=list.json")
    config = world.config("int8")
    assert not Path("models", VARIANT, config.target.name, "int8").exists()


def test_a_leak_behind_a_true_looking_index_is_refused(world: World) -> None:
    """The scored file was replaced by a training image: the index still says otherwise."""
    index = load_index("shapes")
    for sample, leaked in zip(index.split("semantic", "test"), index.split("semantic", "train"), strict=False):
        sample.image.write_bytes(leaked.image.read_bytes())
    with pytest.raises(SegforgeError, match="are in both"):
        _int8(world, "precision.calibration.images=24")


def test_a_changed_training_image_is_refused(world: World) -> None:
    for sample in load_index("shapes").split("semantic", "train"):
        sample.image.write_bytes(sample.image.read_bytes() + b"\0")
    with pytest.raises(SegforgeError, match="has changed since it was listed"):
        _int8(world)


def test_another_data_set_than_at_training_is_refused(world: World) -> None:
    path = Path("data/shapes/index.json")
    index = json.loads(path.read_text())
    for row in index["samples"]["semantic"]["train"]:
        row["sha256"] = "0" * 64
    path.write_text(json.dumps(index))
    with pytest.raises(SegforgeError, match="trained on"):
        _int8(world)


@pytest.mark.parametrize("content", ['{"images": [{"file": "a.png"}]}', '{"images": []}', "[1]"])
def test_a_malformed_list_is_refused(world: World, content: str) -> None:
    Path("list.json").write_text(content)
    with pytest.raises(SegforgeError, match=r"list\.json"):
        _int8(world, "precision.calibration.file=list.json")


def test_skipped_operators_stay_in_float(world: World) -> None:
    model = onnx.load(_int8(world, "precision.skip=[Conv]").typed)
    producers = {name: n.op_type for n in model.graph.node for name in n.output}
    assert all(producers.get(n.input[0]) != "DequantizeLinear" for n in model.graph.node if n.op_type == "Conv")


def test_a_skipped_name_that_is_no_operator_is_refused(world: World) -> None:
    said = r"names Convolution, which is no ONNX operator\n  expected: operators (.|\n)*try: precision\.skip=\[Conv\]"
    with pytest.raises(SegforgeError, match=said):
        _int8(world, "precision.skip=[Conv,Convolution]")
    paths = world.config("int8").paths
    assert not any(path.exists() for path in (paths.typed, paths.calibration, paths.metrics("quantize")))


def test_a_skipped_operator_that_the_network_lacks_changes_nothing(world: World) -> None:
    assert "Gemm" not in {node.op_type for node in onnx.load(VariantPaths(VARIANT).simplified).graph.node}
    plain = _int8(world).typed.read_bytes()
    assert _int8(world, "precision.skip=[Gemm,LSTM]").typed.read_bytes() == plain


def test_a_file_of_another_variant_is_refused(world: World) -> None:
    path = VariantPaths(VARIANT).simplified
    save_onnx(network(replace(world.passport, variant="another")), path)
    with pytest.raises(SegforgeError, match=r"of variant 'another'(.|\n)*stages/simplify\.py"):
        _int8(world)


def test_the_stage_never_imports_torch(world: World, root: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['quantize.py', 'precision=int8', 'precision.calibration.images=2'];"
        "runpy.run_path('stages/quantize.py', run_name='__main__');"
        "assert 'onnxruntime' in sys.modules and 'torch' not in sys.modules, 'torch'"
    )
    environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _tail_graph() -> onnx.ModelProto:
    """Two ReLUs and a ReLU6 in two concatenations, a convolution, then a resize by no whole ratio and argmax."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["images"], ["a"], "relu_a"),
        helper.make_node("Sigmoid", ["images"], ["s"], "sigmoid"),
        helper.make_node("Relu", ["s"], ["b"], "relu_b"),
        helper.make_node("Concat", ["a", "b"], ["both"], "concat", axis=1),
        helper.make_node("Clip", ["images", "zero", "six"], ["c"], "clip"),
        helper.make_node("Concat", ["c", "b"], ["clipped"], "concat_clip", axis=1),
        helper.make_node("Add", ["both", "clipped"], ["sum"], "add"),
        helper.make_node("Conv", ["sum", "weight"], ["logits"], "conv"),
        helper.make_node("Shape", ["logits"], ["nc"], "shape", start=0, end=2),
        helper.make_node("Concat", ["nc", "hw"], ["sizes"], "join", axis=0),
        helper.make_node("Resize", ["logits", "", "", "sizes"], ["large"], "resize", mode="linear"),
        helper.make_node("ArgMax", ["large"], ["wide"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["wide"], ["ids"], "cast", to=TensorProto.UINT8),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 6, 1, 1), dtype=np.float32)
    arrays = {"zero": np.float32(0), "six": np.float32(6), "weight": weight, "hw": np.array([13, 11])}
    graph = helper.make_graph(
        nodes,
        "tail",
        [value("images", TensorProto.FLOAT, ["batch", 3, 8, 6])],
        [value("ids", TensorProto.UINT8, ["batch", 13, 11])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
        value_info=[value("large", TensorProto.FLOAT, ["batch", 4, 13, 11])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_each_rewrite_of_the_tail_keeps_the_ids(tmp_path: Path) -> None:
    images = {"images": np.random.default_rng(1).standard_normal((3, 3, 8, 6), dtype=np.float32)}
    model, results = _tail_graph(), []
    for rewrite in (None, fix_resize_sizes, flatten_argmax, channels_last_argmax):
        if rewrite:
            before = model.SerializeToString()
            rewrite(model)
            assert model.SerializeToString() != before
        onnx.save(model, tmp_path / "tail.onnx")
        with OnnxRunner(tmp_path / "tail.onnx") as runner:
            results.append(runner.run(images)["ids"].copy())
    assert len(np.unique(results[0])) > 1
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_only_relu_inputs_of_a_concat_share_a_range() -> None:
    class Range:
        def __init__(self, low: float, high: float) -> None:
            self.range_value = (np.array([low]), np.array([high]))

    ranges = {name: Range(0, high) for name, high in {"a": 3, "b": 1, "both": 3, "c": 6, "clipped": 6}.items()}
    clip, narrow = ranges["c"], ranges["b"]
    share_concat_ranges(_tail_graph(), ranges)
    assert ranges["b"] is ranges["a"] is ranges["both"]
    assert ranges["b"] is not narrow
    assert ranges["c"] is clip


def test_a_concat_of_unknown_ranges_is_left_alone() -> None:
    ranges: dict[str, Any] = {}
    share_concat_ranges(_tail_graph(), ranges)
    assert not ranges


@pytest.mark.parametrize("layout", ["nchw_float32", "nhwc_uint8"])
def test_the_stem_is_the_large_convolution_that_reads_the_images(layout: str) -> None:
    prepare = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Add", ["shift", "scaled"], ["prepared"]),
    ]
    source = "prepared" if layout == "nhwc_uint8" else "images"
    nodes = [
        helper.make_node("Conv", [source, "large"], ["a"], "stem"),
        helper.make_node("Conv", [source, "small"], ["b"], "beside"),
        helper.make_node("Conv", ["a", "large"], ["c"], "second"),
    ]
    shapes = {"large": (3, 3, 7, 7), "small": (3, 3, 3, 3), "scale": (1, 3, 1, 1), "shift": (1, 3, 1, 1)}
    graph = helper.make_graph(
        [*(prepare if layout == "nhwc_uint8" else []), *nodes],
        "stem",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, None)],
        [],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()],
    )
    assert stems(helper.make_model(graph)) == ["stem"]


def test_the_tail_is_what_follows_the_last_convolution() -> None:
    assert float_nodes_after_last_weight(_tail_graph()) == ["shape", "join", "resize", "argmax", "cast"]


def test_channels_last_leaves_no_unused_constant() -> None:
    model = _tail_graph()
    for rewrite in (fix_resize_sizes, flatten_argmax, channels_last_argmax):
        rewrite(model)
    used = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= used
