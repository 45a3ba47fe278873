"""What may be imported where: the package without its optional parts, the engine half without torch."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import segforge

SOURCE = Path(segforge.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(SOURCE)], "segforge."))
ROOT = SOURCE.parents[1]
STAGES = sorted(f"stages.{path.stem}" for path in (ROOT / "stages").glob("*.py"))
OPTIONAL = ("tensorrt", "pycuda", "openvino", "tritonclient", "mmseg", "mmengine", "mmcv")
# Not optional, yet imported by the one function that needs it: what else the package does goes without.
LATE = ("onnxsim", "onnxslim", "pynvml")
TORCH = {"torch", "torchvision", "segmentation_models_pytorch"}
TORCH_ROOMS = (
    *("segforge.architectures", "segforge.training", "segforge.checkpoint", "segforge.conversion.convert"),
    *("segforge.runtimes.torch", "segforge.runtimes.core.cuda"),
)


def imported_by(module: str, forbidden: tuple[str, ...] = ()) -> set[str]:
    """The top-level packages in memory after importing `module` where `forbidden` cannot be had."""
    code = (
        "import json, sys\n"
        f"for name in {forbidden!r}: sys.modules[name] = None\n"
        f"import {module}\n"
        "print(json.dumps(sorted({n.split('.')[0] for n, m in sys.modules.items() if m is not None})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_whole_package_imports_without_optional_packages() -> None:
    assert len(MODULES) > 60
    assert len(STAGES) > 10
    imported_by(", ".join([*MODULES, *STAGES]), (*OPTIONAL, *LATE))


def test_the_engine_half_does_not_import_torch() -> None:
    light = [m for m in MODULES if not m.startswith(TORCH_ROOMS)]
    assert len(light) > 50
    assert not imported_by(", ".join(light)) & TORCH
    # Nor can any of it need torch for an import.
    imported_by(", ".join(light), tuple(TORCH))


def test_no_program_imports_torch_before_its_config_is_checked() -> None:
    """Not even the model half's: a refusal does not take seconds."""
    assert not imported_by(", ".join(STAGES)) & TORCH


@pytest.mark.parametrize(
    "module",
    [
        *("segforge.engines.engine", "segforge.evaluation", "segforge.timing.figures", "segforge.runtimes"),
        *("stages.build", "stages.evaluate", "stages.benchmark", "stages.compare", "stages.predict"),
    ],
)
def test_a_runtime_is_imported_only_when_it_runs(module: str) -> None:
    assert not imported_by(module) & {"openvino", "torch", "tensorrt"}
