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
OPTIONAL = ("tensorrt", "pycuda", "openvino", "tritonclient", "mmseg", "mmengine", "mmcv")
TORCH_ROOMS = ("segforge.architectures", "segforge.training", "segforge.onnx", "segforge.runtimes.torch")


def imported_by(module: str, forbidden: tuple[str, ...] = ()) -> set[str]:
    """The top-level packages in memory after importing `module` where `forbidden` cannot be had."""
    code = (
        "import json, sys\n"
        f"for name in {forbidden!r}: sys.modules[name] = None\n"
        f"import {module}\n"
        "print(json.dumps(sorted({n.split('.')[0] for n, m in sys.modules.items() if m is not None})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_whole_package_imports_without_optional_packages() -> None:
    imported_by(", ".join(MODULES), OPTIONAL)


def test_the_engine_half_does_not_import_torch() -> None:
    light = [m for m in MODULES if not m.startswith(TORCH_ROOMS)]
    assert len(light) > 15
    loaded = imported_by(", ".join(light))
    assert not loaded & {"torch", "torchvision", "segmentation_models_pytorch"}


@pytest.mark.parametrize("module", ["segforge.runtimes.build", "segforge.scores.evaluate", "segforge.timing.benchmark"])
def test_a_runtime_is_imported_only_when_it_runs(module: str) -> None:
    assert not imported_by(module) & {"openvino", "torch", "tensorrt"}
