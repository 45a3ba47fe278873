"""An exported file agrees with its checkpoint, says everything about itself and nothing about this machine."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tiny_engine import PASSPORT

import segforge
from segforge.config.network import NetworkConfig
from segforge.conversion import convert as conversion
from segforge.conversion import parity
from segforge.datasets.core.images import network_input, read_image
from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file
from segforge.graph.file import read_passport
from segforge.layout import VariantPaths
from segforge.runtimes.core.onnx import OnnxRunner
from stages.export import export

Make = Callable[..., NetworkConfig]


def test_passport_figures_and_outputs(trained: Make) -> None:
    config = trained()
    paths = VariantPaths(config.variant)
    export(config)
    passport = read_passport(paths.onnx, made_by="")
    assert (passport.height, passport.output_height, passport.output_width) == (32, 36, 40)
    assert passport.classes == ["a", "b", "c"]
    assert passport.train_images == sorted(s.sha256[:16] for s in load_index("shapes").split("semantic", "train"))
    assert passport.checkpoint_sha256 == sha256_file(paths.checkpoint / "best.safetensors")
    figures = read_json(paths.metrics("export"), made_by="")
    assert figures["onnx_sha256"] == sha256_file(paths.onnx)
    assert figures["onnx"] == pytest.approx(figures["checkpoint"], abs=0.001)
    assert figures["max_mismatch"] <= config.export.tolerance


@pytest.mark.parametrize("layout", ["nchw_float32", "nhwc_uint8"])
def test_every_batch_of_the_range_gives_what_batch_one_gives(trained: Make, layout: str) -> None:
    config = trained(f"export.input_layout={layout}")
    export(config)
    path = VariantPaths(config.variant).onnx
    passport = read_passport(path, made_by="")
    images = [read_image(s.image) for s in load_index("shapes").split("semantic", "train")[:8]]
    with OnnxRunner(path) as runner:
        alone = np.concatenate([runner.run({"images": network_input([i], passport)})["ids"].copy() for i in images])
        assert len(np.unique(alone)) > 1
        for batch in range(1, 9):
            together = runner.run({"images": network_input(images[:batch], passport)})["ids"]
            assert together.shape == (batch, 36, 40)
            assert (together != alone[:batch]).mean() <= 0.0005


@pytest.mark.parametrize("words", [["export.tail=logits"], ["export.batch_max=1", "export.check_batches=[1]"]])
def test_other_tail_and_a_fixed_batch(trained: Make, words: list[str]) -> None:
    config = trained(*words)
    export(config)
    with OnnxRunner(VariantPaths(config.variant).onnx) as runner:
        (output,) = runner.outputs
    assert output.name == ("logits" if config.export.tail == "logits" else "ids")
    assert output.batch_max == config.export.batch_max


def test_a_classifier_gives_logits(trained: Make) -> None:
    config = trained(model="classifier", backbone="mobilenet_v3_small")
    export(config)
    with OnnxRunner(VariantPaths(config.variant).onnx) as runner:
        assert [(o.name, o.dtype, o.shape) for o in runner.outputs] == [("logits", "float32", (3,))]


def test_same_bytes_again_and_no_trace_of_this_machine(trained: Make) -> None:
    config = trained()
    path = VariantPaths(config.variant).onnx
    export(config)
    first = path.read_bytes()
    export(config)
    assert path.read_bytes() == first
    for word in (os.getcwd(), str(Path(segforge.__file__).parent), "/site-packages/", "stack_trace", "File \\"):
        assert word.encode() not in first
    model = onnx.load_from_string(first)
    assert not any(node.doc_string or len(node.metadata_props) for node in model.graph.node)


def _nearest(model: onnx.ModelProto) -> onnx.ModelProto:
    resize = [n for n in model.graph.node if n.op_type == "Resize"][-1]
    for attribute in resize.attribute:
        if attribute.name == "mode":
            attribute.s = b"nearest"
    return model


def _swapped_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    argmax = next(n for n in model.graph.node if n.op_type == "ArgMax")
    order = numpy_helper.from_array(np.array([1, 0, 2]), "order")
    model.graph.initializer.append(order)
    at = list(model.graph.node).index(argmax)
    model.graph.node.insert(at, helper.make_node("Gather", [argmax.input[0], "order"], ["swapped"], axis=1))
    argmax.input[0] = "swapped"
    return model


def _batch_eight_wrong(model: onnx.ModelProto) -> onnx.ModelProto:
    """Images after the fourth are all computed as the first."""
    first = model.graph.node[0]
    assert first.op_type == "Conv"
    for name, values in {"places": np.array([0, 1, 2, 3, 0, 0, 0, 0]), "zero": [0], "one": [1]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    model.graph.node.insert(0, helper.make_node("Shape", ["images"], ["count"], start=0, end=1))
    model.graph.node.insert(1, helper.make_node("Slice", ["places", "zero", "count"], ["chosen"]))
    model.graph.node.insert(2, helper.make_node("Gather", ["images", "chosen"], ["mixed"], axis=0))
    first.input[0] = "mixed"
    return model


@pytest.mark.parametrize("fault", [_nearest, _swapped_classes, _batch_eight_wrong])
def test_a_wrong_conversion_is_refused_with_a_table_and_leaves_nothing(
    trained: Make, monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    config = trained()
    right = conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda network, passport: fault(right(network, passport)))
    with pytest.raises(SegforgeError, match="DIFFERS") as caught:
        export(config)
    assert "batch" in str(caught.value)
    paths = VariantPaths(config.variant)
    assert sorted(p.name for p in paths.folder.iterdir()) == ["checkpoint"]
    assert not paths.metrics("export").exists()


def test_outputs_that_agree_do_not_excuse_another_score(trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trained()
    right = conversion.convert
    monkeypatch.setattr(conversion, "convert", lambda network, passport: _swapped_classes(right(network, passport)))
    monkeypatch.setattr(parity, "check_parity", lambda *_: 0.0)
    with pytest.raises(SegforgeError, match="the exported graph scores"):
        export(config)
    assert not VariantPaths(config.variant).onnx.exists()


def test_a_size_that_the_network_cannot_take_is_refused_before_the_exporter_runs(
    trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained("recipe.input.height=100")
    monkeypatch.setattr(conversion, "convert", None)
    with pytest.raises(SegforgeError, match=r"100x40\n.*recipe.input with multiples of 8"):
        export(config)


def test_a_network_that_the_exporter_cannot_convert_is_named() -> None:
    class Unequal(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images, images[:, :, ::2]], 1)

    with pytest.raises(SegforgeError, match="cannot convert tiny on none at 8x12: Sizes of tensors must match"):
        conversion.convert(Unequal(), PASSPORT)


def test_other_normalisation_than_trained_is_refused(trained: Make) -> None:
    config = trained()
    config.recipe.input.mean = [0.0, 0.0, 0.0]
    with pytest.raises(SegforgeError, match="as the checkpoint was trained"):
        export(config)
