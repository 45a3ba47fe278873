"""Faults that have reached real deployments, planted into artifacts; evaluate, gate or `Engine.of` must catch each."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_world import COLOURS, VARIANT, World

from segforge.engines.engine import build_engine
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json, sha256_file, write_json
from segforge.layout import EnginePaths
from stages import compare

OTHER = "deeplabv3plus-resnet50-shapes"


def engine_scores(paths: EnginePaths) -> dict[str, float]:
    rows = read_csv(paths.detail("evaluate", "ledger.csv"), made_by="")
    return {row["batch"]: float(row["score"]) for row in rows if row["step"] == "engine"}


def refused(world: World, config, match: str, *, build: bool = True) -> None:
    """The engine does not pass, and no earlier pass is left standing."""
    paths = EnginePaths(config.variant, config.target.name, config.precision.name)
    write_json(paths.metrics("gate"), {"passed": True})
    with pytest.raises(SegforgeError, match=match):
        world.finish(config, build=build)
    if "does not pass" in match:
        assert not paths.metrics("gate").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sound_engine_passes(world, precision):
    config = world.config(precision)
    paths = world.quantize(config)
    world.finish(config)
    assert world.checkpoint > 0.9
    assert read_json(paths.metrics("gate"), made_by="")["passed"] is True
    assert read_json(paths.metrics("evaluate"), made_by="")["engine_sha256"] == sha256_file(paths.engine)


def test_bgr_fed_for_rgb(world):
    config = world.config()
    world.spoil(world.quantize(config), colour_order="bgr")
    refused(world, config, "does not pass the gate: engine at batch 1 lost")


@pytest.mark.parametrize(
    "wrong",
    [{"mean": [127.5] * 3, "std": [127.5] * 3}, {"mean": [0.0] * 3}, {"std": [57.375, 57.12, 70.0]}],
    ids=["another convention", "no mean", "one channel's std"],
)
def test_wrong_mean_or_std(world, wrong):
    config = world.config()
    world.spoil(world.quantize(config), **wrong)
    refused(world, config, "does not pass the gate: engine at batch 1 lost")


def test_labels_shifted_by_one_class(world):
    config = world.config()
    world.quantize(config)
    for path in Path("data/shapes/test").glob("*-ids.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 255, 255, (ids + 1) % 5).astype(np.uint8)).save(path)
    refused(world, config, "does not pass the gate: engine at batch 1 lost")


def test_int8_calibrated_on_noise(world):
    rows, random = [], np.random.default_rng(0)
    for i in range(8):
        path = Path(f"noise{i}.png")
        Image.fromarray(random.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(path)
        rows.append({"image": str(path), "sha256": sha256_file(path)})
    write_json(Path("noise.json"), {"images": rows})
    config = world.config("int8", "precision.calibration.file=noise.json")
    world.quantize(config)
    refused(world, config, "does not pass the gate: typed lost")


class TestAnEngineSwappedForAnotherVariants:
    """The other network knows the same classes in another order."""

    @pytest.fixture
    def swapped(self, world):
        config, other = world.config(), world.config(variant=OTHER)
        world.quantize(config)
        build_engine(config)
        world.model_half(OTHER, np.roll(COLOURS, 1, axis=0))
        foreign = world.quantize(other)
        build_engine(other)
        own = EnginePaths(VARIANT, config.target.name, "fp32")
        shutil.copy(foreign.engine, own.engine)
        return world, config, own, foreign

    def test_the_file_alone(self, swapped):
        world, config, _, _ = swapped
        refused(world, config, r"engine\.bin is refused: its bytes are not those of its manifest", build=False)

    def test_with_its_manifest(self, swapped):
        world, config, own, foreign = swapped
        shutil.copy(foreign.manifest, own.manifest)
        refused(world, config, rf"engine\.bin is refused: its manifest is of variant '{OTHER}'", build=False)
        world.rewrite(own.manifest, variant=VARIANT)
        refused(world, config, r"it was built from another ONNX file than .*typed\.onnx", build=False)

    def test_with_a_forged_manifest(self, swapped):
        world, config, own, _ = swapped
        world.rewrite(own.manifest, engine_sha256=sha256_file(own.engine))
        refused(world, config, "does not pass the gate: engine at batch 1 lost", build=False)


def wrong_at_batch_8(mask: np.ndarray):
    """Add 1 to the class ids under `mask` [H, W] when eight images come at once."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        cast = next(node for node in graph.node if node.op_type == "Cast" and node.output[0] == "ids")
        graph.initializer.append(numpy_helper.from_array(np.array([8], np.int64), "eight"))
        graph.initializer.append(numpy_helper.from_array(mask.astype(np.int64), "mask"))
        nodes = [
            helper.make_node("Shape", ["images"], ["batch"], end=1),
            helper.make_node("Equal", ["batch", "eight"], ["full"]),
            helper.make_node("Cast", ["full"], ["one"], to=TensorProto.INT64),
            helper.make_node("Mul", ["mask", "one"], ["shift"]),
            helper.make_node("Add", [cast.input[0], "shift"], ["shifted"]),
        ]
        cast.input[0] = "shifted"
        at = list(graph.node).index(cast)
        for offset, node in enumerate(nodes):
            graph.node.insert(at + offset, node)
        onnx.checker.check_model(model)

    return change


def test_batch_8_computed_wrongly(world):
    config = world.config()
    paths = world.quantize(config)
    world.spoil(paths, wrong_at_batch_8(np.ones((64, 80))))
    refused(world, config, r"does not pass the gate: engine at batch 8 lost")
    scores = engine_scores(paths)
    assert scores["1"] == pytest.approx(world.checkpoint) and scores["8"] < 0.1


def test_batch_8_computed_wrongly_where_the_score_does_not_look(world):
    config = world.config()
    paths = world.quantize(config)
    void = np.zeros((64, 80))
    void[:2] = 1  # every label is void there
    world.spoil(paths, wrong_at_batch_8(void))
    refused(world, config, "does not pass the gate: engine at batch 8 agrees with the smallest batch on 0.9688 only")
    assert engine_scores(paths)["8"] == pytest.approx(world.checkpoint)


def test_nearest_then_argmax_for_bilinear_then_argmax(world):
    def nearest(model: onnx.ModelProto) -> None:
        resize = next(node for node in model.graph.node if node.op_type == "Resize")
        next(a for a in resize.attribute if a.name == "mode").s = b"nearest"

    config = world.config()
    world.spoil(world.quantize(config), nearest)
    refused(world, config, "does not pass the gate: engine at batch 1 lost")


def test_two_engines_are_compared_with_the_scores_of_these_very_two(world, monkeypatch):
    fp32, int8 = world.config("fp32"), world.config("int8", "against=cpu-onnxruntime/fp32")
    for config in (fp32, int8):
        world.quantize(config)
        world.finish(config)
    compare.compare(int8)
    paths = EnginePaths(int8.variant, int8.target.name, "int8")
    rows = read_csv(paths.detail("compare", "cpu-onnxruntime-fp32.csv"), made_by="")
    assert {row["batch"]: float(row["score"]) for row in rows} == engine_scores(paths)
    assert {row["batch"]: float(row["against_score"]) for row in rows} == engine_scores(
        EnginePaths(fp32.variant, fp32.target.name, "fp32")
    )

    def timed(*_words):
        raise AssertionError("timed before its ledger was read")

    monkeypatch.setattr(compare.Engine, "open", timed)
    paths.engine.write_bytes(paths.engine.read_bytes() + b"\0")
    world.rewrite(paths.manifest, engine_sha256=sha256_file(paths.engine))
    with pytest.raises(SegforgeError, match="is of another engine"):
        compare.compare(int8)
