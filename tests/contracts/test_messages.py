"""Bad input at the stage scripts: exit code 1 or 2, one message, the known names, no traceback, nothing lost."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Stage = Callable[..., subprocess.CompletedProcess[str]]
DEEPLAB = "deeplabv3plus-mobilenet_v2-shapes"


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr, f"{word!r} is not in:\n{done.stderr}"


@pytest.mark.parametrize(
    ("script", "overrides", "words"),
    [
        ("train", ["model=deeplabv3pus"], ["deeplabv3pus", "deeplabv3plus", "classifier", "known names"]),
        ("train", ["backbone=resnet18"], ["resnet18", "resnet50", "mobilenet_v2"]),
        (
            "train",
            ["model=classifier", "backbone=resnet50"],
            ["classifier-resnet50-shapes", "classifier-mobilenet_v3_small-shapes"],
        ),
        ("train", ["dataset=kitti"], ["kitti", "camvid", "shapes"]),
        ("train", ["recipe.training.lrr=1"], ["lrr", "recipe.training.lrr"]),
        ("train", ["recipe.training.epochs=many"], ["many", "Integer"]),
        ("build", ["precision=int4"], ["int4", "fp32", "int8"]),
        ("build", ["target=gpu-tensorrt"], ["gpu-tensorrt", "cpu-onnxruntime"]),
        (
            "build",
            ["target=cpu-onnxruntime", "precision=bf16"],
            ["cannot run bf16", "no bf16 convolution", "fp32, int8"],
        ),
        ("build", ["variant=deeplabv3plus-mobilenet_v2-shape"], ["unknown variant", DEEPLAB]),
        (
            "evaluate",
            ["model=deeplabv3plus"],
            ["belong to the model half", "variant=deeplabv3plus-<backbone>-<dataset>"],
        ),
        ("build", [f"variant={DEEPLAB}"], ["models/machines/cpu.json is missing", "stages/probe.py"]),
        ("ceilings", ["device=tpu"], ["tpu", "known names", "device: cpu, h100, h200"]),
        ("ceilings", [], ["models/machines/cpu.json is missing", "stages/probe.py"]),
        (
            "ceilings",
            ["device=h200"],
            ["device 'h200' is not here: no NVIDIA GPU", "a gpu with name H200, sm 9.0", "conf/device/h200.yaml"],
        ),
        ("export", [], ["stages/train.py"]),
        ("quantize", [f"variant={DEEPLAB}"], ["simplified.onnx is missing", "stages/simplify.py"]),
        ("evaluate", [f"variant={DEEPLAB}"], ["is missing"]),
        ("gate", [f"variant={DEEPLAB}"], ["is missing", "stages/evaluate.py"]),
        ("train", [], ["index.json is missing", "python stages/download.py dataset=shapes"]),
        ("download", ["dataset=camvid"], ["camvid-480x360.tar", "SEGFORGE_MIRROR"]),
        ("download", ["dataset=camvid", "dataset.folder=nowhere"], ["nowhere"]),
        ("download", ["recipe=typo"], ["recipe/typo", DEEPLAB, "known names"]),
        ("download", ["dataset.tasks=[]"], ["dataset.tasks=[]", "semantic, panoptic, classification"]),
        ("predict", [f"variant={DEEPLAB}", "input=none.png", "output=out"], ["none.png"]),
    ],
)
def test_bad_input_is_named(script: str, overrides: list[str], words: list[str], stage: Stage, project: Path) -> None:
    before = sorted(p for p in project.rglob("*") if p.is_file())
    refused(stage(script, *overrides, SEGFORGE_MIRROR="", CUDA_VISIBLE_DEVICES=""), *words)
    left = [p for p in project.rglob("*") if p.is_file() and p not in before and "__pycache__" not in p.parts]
    assert not left, "a refused command leaves nothing behind"


def test_hydra_full_error_shows_the_traceback(stage: Stage) -> None:
    done = stage("build", "target=cpu-onnxruntime", "precision=bf16", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_another_folder_is_named(stage: Stage, project: Path) -> None:
    (project / "conf" / "network.yaml").unlink()
    refused(stage("train"), "is not the project's root", "cd to the clone")


def test_a_full_disk_leaves_the_old_file(stage: Stage, project: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the middle, as it would there."""

    def written() -> dict[str, bytes]:
        folder = project / "models"
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert stage("probe").returncode == 0
    before = written()
    assert {"machines/cpu.json", "machines/cpu/onnxruntime.json"} <= before.keys()
    script = (project / "stages" / "probe.py").read_text()
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    )
    head, _, tail = script.partition('if __name__ == "__main__":')
    (project / "stages" / "probe.py").write_text(f'{head}{limit}if __name__ == "__main__":{tail}')
    refused(stage("probe"), "File too large")
    assert written() == before
