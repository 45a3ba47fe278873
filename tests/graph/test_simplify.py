"""A simplified file keeps outputs, passport and dynamic batch, and computes no sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from segforge.config.network import NetworkConfig
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file, write_json
from segforge.graph.file import embed_passport, read_passport, save_onnx
from segforge.graph.rewrites import SIMPLIFIERS, require_constant_pads, simplified
from segforge.layout import VariantPaths
from segforge.runtimes.core.onnx import OnnxRunner
from stages import simplify as stage
from stages.export import export
from stages.simplify import simplify

Make = Callable[..., NetworkConfig]


@pytest.fixture(params=["onnxsim", "onnxslim"])
def exported(trained: Make, request: pytest.FixtureRequest) -> NetworkConfig:
    config = trained(f"export.simplifier={request.param}")
    export(config)
    return config


def test_these_are_all_simplifiers_and_another_is_refused() -> None:
    assert list(SIMPLIFIERS) == ["onnxsim", "onnxslim"]
    with pytest.raises(SegforgeError, match=r"export\.simplifier 'onnx'(.|\n)*onnxsim, onnxslim"):
        simplified(onnx.ModelProto(), "onnx")


def test_plain_operators_same_passport_same_outputs(exported: NetworkConfig) -> None:
    paths = VariantPaths(exported.variant)
    simplify(exported)
    operators = [n.op_type for n in onnx.load(paths.simplified).graph.node]
    assert "GlobalAveragePool" in operators
    assert not {"Shape", "ReduceMean", "Slice"} & {*operators}
    assert operators.count("Concat") == 1  # the network's own, none that joins sizes
    assert read_passport(paths.simplified, made_by="") == read_passport(paths.onnx, made_by="")
    figures = read_json(paths.metrics("simplify"), made_by="")
    assert figures["simplifier"] == exported.export.simplifier
    assert figures["simplified_sha256"] == sha256_file(paths.simplified)
    assert figures["nodes_after"] < figures["nodes_before"]
    random = np.random.default_rng(0)
    with OnnxRunner(paths.onnx) as before, OnnxRunner(paths.simplified) as after:
        for batch in range(1, 9):
            images = {"images": random.standard_normal((batch, 3, 32, 40), dtype=np.float32)}
            assert (before.run(images)["ids"] != after.run(images)["ids"]).mean() <= 0.0005
    first = paths.simplified.read_bytes()
    simplify(exported)
    assert paths.simplified.read_bytes() == first


@pytest.mark.parametrize("name", [None, "pixels"])
def test_a_missing_or_renamed_input_is_named(exported: NetworkConfig, name: str | None) -> None:
    path = VariantPaths(exported.variant).onnx
    model = onnx.load(path)
    if name is None:
        del model.graph.input[:]
    else:
        model.graph.input[0].name = model.graph.node[0].input[0] = name
    save_onnx(model, path)
    with pytest.raises(SegforgeError, match=name or "none") as caught:
        simplify(exported)
    assert "images FLOAT[batch, 3, 32, 40]" in str(caught.value)
    assert not VariantPaths(exported.variant).simplified.exists()


def test_a_file_that_is_no_onnx_is_refused(exported: NetworkConfig) -> None:
    VariantPaths(exported.variant).onnx.write_bytes(b"not a graph")
    with pytest.raises(SegforgeError, match=r"stages/export\.py"):
        simplify(exported)


def test_a_computed_pad_is_refused_by_name() -> None:
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    amounts = helper.make_tensor("amounts", onnx.TensorProto.INT64, [8], [0, 0, 1, 1, 0, 0, 1, 1])
    constant = helper.make_node("Pad", ["images", "amounts"], ["padded"], "by_constant")
    shaped = helper.make_node("Shape", ["padded"], ["sizes"], "shape")
    twice = helper.make_node("Concat", ["sizes", "sizes"], ["computed"], "twice", axis=0)
    pad = helper.make_node("Pad", ["padded", "computed"], ["out"], "by_computation")
    graph = helper.make_graph([constant, shaped, twice, pad], "pads", [images], [], [amounts])
    with pytest.raises(SegforgeError, match="by_computation") as caught:
        require_constant_pads(helper.make_model(graph), VariantPaths("v").simplified)
    assert "by_constant" not in str(caught.value)


def test_a_simplification_that_changes_outputs_is_refused(
    exported: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = stage.simplified

    def wrong(original: onnx.ModelProto, simplifier: str) -> onnx.ModelProto:
        model = right(original, simplifier)
        next(n for n in model.graph.node if n.op_type == "ArgMax").op_type = "ArgMin"
        return model

    monkeypatch.setattr(stage, "simplified", wrong)
    with pytest.raises(SegforgeError, match="DIFFERS"):
        simplify(exported)
    assert not VariantPaths(exported.variant).simplified.exists()


def test_a_score_other_than_the_checkpoints_is_refused(exported: NetworkConfig) -> None:
    path = VariantPaths(exported.variant).metrics("export")
    figures = read_json(path, made_by="")
    write_json(path, figures | {"checkpoint": figures["checkpoint"] + 0.01})
    with pytest.raises(SegforgeError, match="as the checkpoint"):
        simplify(exported)


def test_what_export_spent_of_the_tolerance_is_gone(exported: NetworkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = VariantPaths(exported.variant).metrics("export")
    write_json(path, read_json(path, made_by="") | {"max_mismatch": exported.export.tolerance / 4})
    given: list[float] = []

    def seen(*arguments: Any) -> float:
        given.append(arguments[-1])
        return 0.0

    monkeypatch.setattr(stage, "check_parity", seen)
    simplify(exported)
    assert given == [pytest.approx(exported.export.tolerance * 3 / 4)]


def test_figures_of_another_export_are_refused(exported: NetworkConfig) -> None:
    path = VariantPaths(exported.variant).metrics("export")
    write_json(path, read_json(path, made_by="") | {"onnx_sha256": "0" * 64})
    with pytest.raises(SegforgeError, match=r"of another file than(.|\n)*stages/export\.py"):
        simplify(exported)


def test_a_file_of_another_variant_is_refused(exported: NetworkConfig) -> None:
    path = VariantPaths(exported.variant).onnx
    model = onnx.load(path)
    embed_passport(model, replace(read_passport(path, made_by=""), variant="another"))
    save_onnx(model, path)
    with pytest.raises(SegforgeError, match=r"of variant 'another'(.|\n)*stages/export\.py"):
        simplify(exported)
