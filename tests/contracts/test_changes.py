"""What CONTRIBUTING says a change takes: each is made in a scratch copy, counted, and run."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_world import VARIANT, World

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("src", "stages", "conf", "pipeline", "dvc.yaml", "params.yaml")


class Scratch:
    """A copy of the project, and what was changed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in PARTS:
            if (ROOT / name).is_dir():
                left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "dvc.lock")
                shutil.copytree(ROOT / name, folder / name, ignore=left_out, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, folder / name)

    def write(self, path: str, text: str) -> None:
        """A new file."""
        assert not (self.folder / path).exists()
        (self.folder / path).write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        """One place of a file."""
        text = (self.folder / path).read_text()
        assert text.count(old) == 1, path
        (self.folder / path).write_text(text.replace(old, new))

    def changes(self) -> dict[str, int]:
        """The lines added or altered, by file."""
        found = {}
        for path in (
            p for name in PARTS for p in [self.folder / name, *(self.folder / name).rglob("*")] if p.is_file()
        ):
            name = path.relative_to(self.folder)
            if "__pycache__" in name.parts or path.suffix not in (".py", ".yaml"):
                continue
            before = (ROOT / name).read_text().splitlines() if (ROOT / name).is_file() else []
            diff = difflib.unified_diff(before, path.read_text().splitlines(), n=0)
            added = sum(line.startswith("+") and not line.startswith("+++") for line in diff)
            if added:
                found[str(name)] = added
        return found

    def run(self, *words: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        """A program of the copy, with the copy's own library."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "src")}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert (done.returncode != 0) == fails, done.stderr[-3000:]
        return done


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


@pytest.fixture
def world(scratch: Scratch, composed: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> World:
    """A data set and a variant up to simplified.onnx, in the scratch copy."""
    monkeypatch.chdir(scratch.folder)
    return World(composed)


def engine(scratch: Scratch, verb: str, *words: str) -> None:
    scratch.run(f"stages/{verb}.py", f"variant={VARIANT}", "benchmark.batches=[1,2]", *words)


@pytest.mark.slow
def test_a_backbone(scratch: Scratch) -> None:
    name = "deeplabv3plus-resnet34-shapes"
    scratch.write("conf/backbone/resnet34.yaml", "name: resnet34\n")
    scratch.edit("src/segforge/architectures/deeplabv3plus.py", '"resnet50",', '"resnet34", "resnet50",')
    recipe = ["weights: null", "input: {height: 64, width: 64}", "training: {epochs: 1, batch: 4, lr: 0.001}"]
    scratch.write(f"conf/recipe/{name}.yaml", "\n".join([f"name: {name}", *recipe]) + "\n")
    row = "model: deeplabv3plus, backbone: resnet34, dataset: shapes, family: deeplabv3plus, task: semantic"
    engine_row = f"  {name}-cpu-onnxruntime-fp32: {{<<: *resnet34, device: cpu, runtime: onnxruntime, precision: fp32}}"
    scratch.edit("params.yaml", "variants:\n", f"variants:\n  {name}: &resnet34 {{{row}, variant: {name}}}\n")
    scratch.edit("params.yaml", "engines:\n", f"engines:\n{engine_row}\n")
    changes = scratch.changes()
    assert len(changes) <= 4 and sum(changes.values()) <= 10, changes
    small = [
        "dataset.options.scenes={train: 8, val: 2, test: 2}",
        "dataset.options.objects={train: 5, val: 5, test: 5}",
    ]
    scratch.run("stages/download.py", *small)
    scratch.run("stages/train.py", "backbone=resnet34", *small)
    assert (
        json.loads((scratch.folder / f"models/{name}/checkpoint/checkpoint.json").read_text())["backbone"] == "resnet34"
    )
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=scratch.folder, check=True)
    listed = scratch.run("-m", "dvc", "stage", "list", "--all", "--name-only").stdout
    assert f"train@{name}" in listed and f"build@{name}-cpu-onnxruntime-fp32" in listed


def test_a_runtime(scratch: Scratch, world: World) -> None:
    scratch.write(
        "src/segforge/runtimes/plain.py",
        '''"""ONNX Runtime on the graph as it is."""

from pathlib import Path
from typing import Any

from segforge.runtimes.core.base import EngineSpec
from segforge.runtimes.core.onnx import OnnxRunner


def flags(spec: EngineSpec) -> dict[str, Any]:
    return {"optimise": False}


def build(typed: Path, spec: EngineSpec) -> bytes:
    return typed.read_bytes()


class EngineRunner(OnnxRunner):
    optimise = False

    def __init__(self, engine: Path, spec: EngineSpec) -> None:
        super().__init__(engine, threads=spec.threads)
''',
    )
    scratch.edit(
        "src/segforge/runtimes/__init__.py", '    "torch": (', '    "plain": ("onnxruntime",),\n    "torch": ('
    )
    target = ["defaults:", "  - /device@device: cpu", "name: cpu-plain", "runtime: plain", "precisions: [fp32]"]
    scratch.write("conf/target/cpu-plain.yaml", "\n".join(target) + "\n")
    changes = scratch.changes()
    assert changes.pop("src/segforge/runtimes/__init__.py") == 1
    assert changes.keys() == {"src/segforge/runtimes/plain.py", "conf/target/cpu-plain.yaml"}
    scratch.run("stages/probe.py")
    for verb in ("quantize", "build", "evaluate", "gate"):
        engine(scratch, verb, "target=cpu-plain")
    figures = scratch.folder / f"metrics/evaluate/{VARIANT}/cpu-plain/fp32.json"
    assert json.loads(figures.read_text())["score"] == pytest.approx(world.checkpoint)


def test_a_precision(scratch: Scratch, world: World) -> None:
    scratch.write(
        "src/segforge/precisions/rounded.py",
        '''"""Weights rounded to float16, computed in float32."""

import numpy as np
import onnx
from onnx import numpy_helper


def to_rounded(source, passport, images, precision, target):  # type: ignore[no-untyped-def]
    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(values.dtype), tensor.name))
    return model
''',
    )
    registry = "src/segforge/precisions/__init__.py"
    scratch.edit(registry, "TYPINGS = {", 'TYPINGS = {"rounded": Typing(("fp32",), to_rounded), ')
    imported = "from segforge.precisions.qdq import to_qdq"
    scratch.edit(registry, imported, f"{imported}\nfrom segforge.precisions.rounded import to_rounded")
    row = (ROOT / "conf/precision/fp32.yaml").read_text().replace("fp32", "w16", 1).replace("as_is", "rounded")
    scratch.write("conf/precision/w16.yaml", row)
    scratch.edit("conf/target/cpu-onnxruntime.yaml", "[fp32, int8]", "[fp32, w16, int8]")
    for verb in ("quantize", "build", "evaluate", "gate"):
        engine(scratch, verb, "precision=w16")
    assert len(scratch.changes()) <= 4, scratch.changes()
    gated = json.loads((scratch.folder / f"metrics/gate/{VARIANT}/cpu-onnxruntime/w16.json").read_text())
    assert gated["budget"] == 0.0005


def test_a_precision_in_arithmetic_that_the_runtime_had_not(scratch: Scratch, world: World) -> None:
    """No way of typing is new here: the graph stays float, and the runtime computes in the type itself."""
    row = (ROOT / "conf/precision/fp32.yaml").read_text().replace("fp32", "tf32")
    scratch.write("conf/precision/tf32.yaml", row)
    scratch.edit("conf/device/cpu.yaml", "[fp32,", "[fp32, tf32,")
    scratch.edit("conf/target/cpu-openvino.yaml", "[fp32,", "[fp32, tf32,")
    scratch.edit("src/segforge/runtimes/openvino.py", '"fp32": "f32",', '"fp32": "f32", "tf32": "f32",')
    scratch.run("stages/probe.py")
    for verb in ("quantize", "build", "evaluate"):
        engine(scratch, verb, "target=cpu-openvino", "precision=tf32")
    assert len(scratch.changes()) <= 4, scratch.changes()


def test_a_metric(scratch: Scratch, world: World) -> None:
    scratch.write(
        "src/segforge/tasks/semantic/accuracy.py",
        '''"""The share of labelled pixels whose class is right."""

from typing import Any, ClassVar, Self

from segforge.tasks.core.base import Labels
from segforge.tasks.semantic.miou import MeanIoU


class Accuracy(MeanIoU):
    name: ClassVar[str] = "accuracy"

    def result(self) -> dict[str, Any]:
        return {"score": super().result()["pixel_accuracy"]}


METRIC = Accuracy
''',
    )
    scratch.edit("src/segforge/tasks/semantic/__init__.py", '("miou",)', '("miou", "accuracy")')
    changes = scratch.changes()
    assert changes.keys() == {"src/segforge/tasks/semantic/__init__.py", "src/segforge/tasks/semantic/accuracy.py"}
    assert changes["src/segforge/tasks/semantic/__init__.py"] == 1
    for verb in ("quantize", "build", "evaluate"):
        engine(scratch, verb)
    found = json.loads((scratch.folder / f"metrics/evaluate/{VARIANT}/cpu-onnxruntime/fp32.json").read_text())
    assert found["accuracy"] == found["pixel_accuracy"]
    assert found["score"] == pytest.approx(world.checkpoint)


def test_a_data_set(scratch: Scratch) -> None:
    scratch.write(
        "src/segforge/datasets/stripes.py",
        '''"""Pictures of one colour, by class."""

from pathlib import Path

import numpy as np
from PIL import Image

from segforge.config.recipe import Dataset
from segforge.config.rules import SPLITS
from segforge.datasets.arrival.checks import Samples


def make(config: Dataset, folder: Path) -> Samples:
    rows = {}
    for number, split in enumerate(SPLITS):
        rows[split] = []
        for label in range(2):
            name = f"{split}-{label}.png"
            Image.fromarray(np.full((8, 8, 3), 100 * label + number, np.uint8)).save(folder / name)
            rows[split].append({"image": name, "label": label})
    return {"classification": rows}
''',
    )
    scratch.edit("src/segforge/datasets/__init__.py", '"shapes")', '"shapes", "stripes")')
    text = "name: stripes\ntasks: [classification]\nclasses: {classification: [dark, light]}\nheight: 8\nwidth: 8\n"
    scratch.write("conf/dataset/stripes.yaml", text)
    scratch.edit(
        "params.yaml", "  shapes: {format: shapes}", "  shapes: {format: shapes}\n  stripes: {format: stripes}"
    )
    assert len(scratch.changes()) <= 4, scratch.changes()
    scratch.run("stages/download.py", "dataset=stripes")
    index = json.loads((scratch.folder / "data/stripes/index.json").read_text())
    assert [row["label"] for row in index["samples"]["classification"]["test"]] == [0, 1]


def test_a_device_and_a_target_on_it(scratch: Scratch, world: World) -> None:
    scratch.write("conf/device/laptop.yaml", "name: laptop\nkind: cpu\nprecisions: [fp32, int8]\n")
    assert len(scratch.changes()) == 1
    scratch.run("stages/probe.py")
    assert (scratch.folder / "models/machines/laptop.json").is_file()
    target = [
        "defaults:",
        "  - /device@device: laptop",
        "name: laptop-onnxruntime",
        "runtime: onnxruntime",
        "precisions: [fp32]",
    ]
    scratch.write("conf/target/laptop-onnxruntime.yaml", "\n".join(target) + "\n")
    assert len(scratch.changes()) == 2
    for verb in ("quantize", "build", "evaluate", "gate"):
        engine(scratch, verb, "target=laptop-onnxruntime")
    scratch.write(
        "conf/device/rtx4090.yaml",
        "name: rtx4090\nkind: gpu\nprecisions: [fp32]\nrecognise: {name: RTX 4090, sm: '8.9'}\n",
    )
    refused = scratch.run("stages/ceilings.py", "device=rtx4090", fails=True)
    assert "device 'rtx4090' is not here" in refused.stderr and "Traceback" not in refused.stderr
