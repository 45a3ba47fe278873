import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_world import VARIANT

from segforge.datasets.core.index import Sample, load_index
from segforge.errors import SegforgeError
from segforge.evaluation import infer, outputs_digest, score_runner
from segforge.files import read_csv, read_json
from segforge.layout import VariantPaths
from segforge.passport import TensorSpec
from segforge.runtimes.core.base import Runner
from segforge.runtimes.core.onnx import OnnxRunner
from segforge.tasks.semantic import Semantic
from segforge.tasks.semantic.miou import MeanIoU


class Echo(Runner):
    """Gives the red channel's mean as its only logit's class; notes the batches that it saw."""

    def __init__(self, batch_min=1, batch_max=8):
        self.range, self.seen = (batch_min, batch_max), []

    def open(self):
        pass

    def describe(self):
        images = TensorSpec("images", "uint8", (4, 4, 3), *self.range)
        return [images], [TensorSpec("ids", "uint8", (4, 4), *self.range)]

    def load(self, inputs):
        self.batch = inputs["images"]

    def execute(self):
        self.seen.append(len(self.batch))

    def fetch(self):
        return {"ids": self.batch[..., 0]}

    def close(self):
        pass


def test_evaluate_writes_what_others_read(world):
    config = world.config("fp32", "benchmark.batches=[8,1,2]")
    paths = world.quantize(config)
    world.finish(config)
    ledger = read_csv(paths.detail("evaluate", "ledger.csv"), made_by="")
    assert [(row["step"], row["by"], row["runtime"], row["batch"]) for row in ledger] == [
        ("checkpoint", "training", "torch", ""),
        ("onnx", "torch.onnx", "onnxruntime", ""),
        ("simplified", "onnxsim", "onnxruntime", ""),
        ("typed", "as_is", "onnxruntime", ""),
        *(("engine", "build", "onnxruntime", batch) for batch in "128"),
    ]
    figures = read_json(paths.metrics("evaluate"), made_by="")
    assert figures["metric"] == "miou" and figures["checkpoint"] == world.checkpoint
    assert figures["score"] == min(float(row["score"]) for row in ledger if row["step"] == "engine")
    assert figures["loss"] == world.checkpoint - figures["score"]
    assert figures["void"] == "pixels with label 255 are neither scored nor counted"
    classes = read_csv(paths.detail("evaluate", "classes.csv"), made_by="")
    assert [row["class"] for row in classes] == world.passport.classes
    assert np.mean([float(row["iou"]) for row in classes]) == pytest.approx(figures["score"])
    outputs = read_json(paths.detail("evaluate", "outputs.json"), made_by="")
    assert outputs["images"] == 16 and set(outputs["sha256"]) == {"1", "2", "8"}


class Accuracy(MeanIoU):
    name = "accuracy"

    def result(self):
        return {"score": super().result()["pixel_accuracy"], "per_class": []}


def test_a_further_metric_of_a_task_is_in_the_figures_and_gates_nothing(world, monkeypatch):
    config = world.config()
    paths = world.quantize(config)
    world.finish(config)
    before = read_json(paths.metrics("evaluate"), made_by="")
    monkeypatch.setitem(sys.modules, "segforge.tasks.semantic.accuracy", SimpleNamespace(METRIC=Accuracy))
    monkeypatch.setattr(Semantic, "metrics", ("miou", "accuracy"))
    world.finish(config)
    assert read_json(paths.metrics("evaluate"), made_by="") == before | {"accuracy": before["pixel_accuracy"]}


@pytest.mark.parametrize(
    ("stage", "key", "match"),
    [
        ("export", "checkpoint_sha256", "broken at the checkpoint(.|\n)*stages/export.py model=deeplabv3plus"),
        ("export", "onnx_sha256", "broken at model.onnx(.|\n)*stages/simplify.py"),
        ("simplify", "simplified_sha256", "broken at simplified.onnx(.|\n)*stages/quantize.py variant="),
        ("quantize", "typed_sha256", "broken at typed.onnx(.|\n)*stages/quantize.py"),
        ("build", "onnx_sha256", r"another ONNX file than models/.*/typed\.onnx(.|\n)*stages/build.py"),
        ("build", "engine_sha256", r"engine\.bin is refused: its bytes are not(.|\n)*stages/build.py"),
    ],
)
def test_a_broken_chain_is_refused_at_its_link(world, stage, key, match):
    config = world.config()
    paths = world.quantize(config)
    world.finish(config)
    model_half = stage in ("export", "simplify")
    path = VariantPaths(VARIANT).metrics(stage) if model_half else paths.metrics(stage)
    world.rewrite(paths.manifest if stage == "build" else path, **{key: "0" * 64})
    with pytest.raises(SegforgeError, match=match):
        world.finish(config, build=False)


@pytest.mark.parametrize("stage", ["export", "simplify", "quantize"])
def test_a_missing_step_names_its_command(world, stage):
    config = world.config()
    paths = world.quantize(config)
    (paths.metrics(stage) if stage == "quantize" else VariantPaths(VARIANT).metrics(stage)).unlink()
    with pytest.raises(SegforgeError, match=rf"is missing(.|\n)*stages/{stage}.py"):
        world.finish(config)


def test_other_classes_in_the_data_set_are_refused(world):
    config = world.config()
    world.quantize(config)
    index = Path("data/shapes/index.json")
    index.write_text(index.read_text().replace('"sand"\n', '"sand",\n"snow"\n'))
    with pytest.raises(SegforgeError, match=r"other semantic classes(.|\n)*5 classes: brick"):
        world.finish(config)


def test_a_scored_image_that_was_trained_on_is_refused(world):
    config = world.config()
    paths = world.quantize(config)
    first = load_index("shapes").split("semantic", "test")[0].sha256
    world.spoil(paths, train_images=[first[:16]])
    with pytest.raises(SegforgeError, match="training images and scored images: 1 images are in both"):
        world.finish(config)


def test_a_batch_outside_the_engine_is_refused_before_work(world):
    config = world.config("fp32", "benchmark.batches=[1,16]")
    world.quantize(config)
    with pytest.raises(SegforgeError, match=r"\[16\] (lie|are) outside"):
        world.finish(config)


@pytest.mark.parametrize(("batch", "n"), [(1, 5), (3, 5), (8, 5), (5, 16), (8, 32)])
def test_the_digest_of_the_scored_run_can_be_repeated(world, batch, n):
    samples = load_index("shapes").split("semantic", "test")
    with OnnxRunner(VariantPaths(VARIANT).onnx) as runner:
        scored = score_runner(runner, world.passport, samples, batch, limit_outputs=n)
        again = outputs_digest(runner, world.passport, samples, batch, n)
        other = outputs_digest(runner, world.passport, samples[1:], batch, n)
    assert scored.outputs_sha256 == again != other
    assert scored.classes.shape == (min(n, 16), 64, 80)


def test_the_score_does_not_depend_on_the_batch(world):
    samples = load_index("shapes").split("semantic", "test")
    with OnnxRunner(VariantPaths(VARIANT).onnx) as runner:
        assert len({score_runner(runner, world.passport, samples, b).result["score"] for b in (1, 3, 7)}) == 1


def test_the_last_batch_is_small_or_filled_and_counted_once(world):
    passport = replace(world.passport, height=4, width=4, input_layout="nhwc_uint8")
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(5)]
    for batch_min, batches in ((1, [3, 2]), (3, [3, 3])):
        with Echo(batch_min) as runner:
            ids = [int(i[0, 0]) for _, _, raw in infer(runner, passport, images, lambda i: i, 3) for i in raw["ids"]]
        assert runner.seen == batches and ids == [0, 1, 2, 3, 4]


def test_the_digest_runs_the_very_batches_of_scoring(world):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("image.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("label.png")
    passport = replace(world.passport, height=4, width=4, input_layout="nhwc_uint8")
    samples = [Sample(Path("image.png"), Path("label.png"), "")] * 8
    with Echo() as scoring:
        score_runner(scoring, passport, samples, 3, limit_outputs=5)
    with Echo() as repeating:
        outputs_digest(repeating, passport, samples, 3, 5)
    assert scoring.seen == [3, 3, 2] and repeating.seen == [3, 3]


def test_ids_are_resized_to_the_labels_and_foreign_labels_refused(world):
    passport = replace(world.passport, height=4, width=4, input_layout="nhwc_uint8")
    Image.fromarray(np.ones((4, 4, 3), np.uint8)).save("image.png")
    Image.fromarray(np.ones((8, 12), np.uint8)).save("label.png")
    sample = Sample(Path("image.png"), Path("label.png"), "")
    with Echo() as runner:
        assert score_runner(runner, passport, [sample], 1).result["score"] == 1.0
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save("label.png")
        with pytest.raises(SegforgeError, match="labels hold the ids 9"):
            score_runner(runner, passport, [sample], 1)
