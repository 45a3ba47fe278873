"""The whole road on a small `shapes`: a copy of the project that runs in a minute, and DVC in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from segforge.files import sha256_file

ROOT = Path(__file__).resolve().parent.parent
DEEPLAB, CLASSIFIER = "deeplabv3plus-mobilenet_v2-shapes", "classifier-mobilenet_v3_small-shapes"
ENGINES = (f"{DEEPLAB}-cpu-torch-fp32", f"{DEEPLAB}-cpu-onnxruntime-int8", f"{CLASSIFIER}-cpu-openvino-int8")
RUNNING = re.compile(r"^Running stage '(?:[^']+:)?([^']+)'", re.MULTILINE)  # the stage, without the file it stands in


def edit(path: Path, **changes: Any) -> None:
    """Set dotted keys of a YAML file."""
    content = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        node[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def make_project(folder: Path) -> Path:
    """A copy of the project whose catalogue takes a minute instead of ten."""
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "dvc.lock")
    for name in ("conf", "pipeline", "stages", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    edit(
        folder / "conf/dataset/shapes.yaml",
        options__scenes={"train": 24, "val": 6, "test": 10},
        options__objects={"train": 40, "val": 10, "test": 20},
    )
    for variant in (DEEPLAB, CLASSIFIER):
        edit(
            folder / f"conf/recipe/{variant}.yaml",
            training__epochs=2,
            training__batch=8,
            budget={"fp32": 0.0005, "bf16": 0.05, "int8": 0.2},  # two epochs leave thin margins between classes
        )
    edit(
        folder / "conf/benchmark/default.yaml",
        batches=[1, 2],
        warmup_s=0.05,
        warmup_max_s=0.1,
        measure_s=0.05,
        min_samples=10,
        images=4,
    )
    edit(folder / "conf/machine.yaml", ceilings_s=0.02)
    catalogue = yaml.safe_load((folder / "params.yaml").read_text())
    catalogue["variants"] = {key: catalogue["variants"][key] for key in (DEEPLAB, CLASSIFIER)}
    catalogue["engines"] = {key: catalogue["engines"][key] for key in ENGINES}
    (folder / "params.yaml").write_text(yaml.safe_dump(catalogue, sort_keys=False))
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    return folder


def environment() -> dict[str, str]:
    """The test's own Python first on the PATH: DVC starts stages as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": "src"}


def dvc(folder: Path, *words: str) -> str:
    """Run DVC in `folder`; its output, after asserting that it ended well."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def ran(output: str) -> set[str]:
    """The stages that DVC ran, without the file that each stands in."""
    return set(RUNNING.findall(output))


def deterministic(folder: Path) -> dict[str, str]:
    """Hashes of every artifact that must come out the same however often the road was cut off."""
    names = [
        *folder.glob("data/*/index.json"),
        *folder.glob("models/*/checkpoint/*"),
        *folder.glob("models/*/*.onnx"),
        *folder.glob("models/*/*/*/typed.onnx"),
        *folder.glob("metrics/evaluate/*/*/*-ledger.csv"),
    ]
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(names)}
