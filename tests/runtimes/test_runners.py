"""One contract for every runtime in the registry, on the same tiny network."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from tiny_engine import CLASSES, HEIGHT, METADATA, WIDTH, images

from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.onnx.metadata import OnnxMetadata, save_onnx
from segforge.runtimes import RUNTIMES, onnx_runner, open_runner, runtime_module
from segforge.runtimes.base import BuildJob, Runner, TensorSpec


@pytest.fixture
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network under the name `tiny` in the registry of architectures."""
    import torch

    from segforge import architectures

    def build(backbone: str, classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, classes, 1))

    tiny = architectures.Architecture(build=build, backbones=("none",), backbone_part="0")
    monkeypatch.setitem(architectures.registry, "tiny", tiny)


def make_runner(runtime: str, folder: Path, metadata: OnnxMetadata = METADATA) -> Runner:
    """A runner over the tiny network, through the runtime's own `build`."""
    from safetensors.numpy import save_file

    typed, engine = folder / "typed.onnx", folder / f"{runtime}.bin"
    save_onnx(tiny_engine.tiny_onnx(metadata, metadata.tail), typed)
    job = BuildJob(typed, metadata, "fp32", 1, "cpu", {})
    if runtime == "torch":
        save_file(tiny_engine.weights(), engine)
    else:
        engine.write_bytes(runtime_module(runtime).build(job))
    return open_runner(runtime, engine, metadata, precision="fp32", threads=1)


@pytest.fixture(params=RUNTIMES)
def runner(request: pytest.FixtureRequest, tmp_path: Path, tiny_architecture: None) -> Iterator[Runner]:
    with make_runner(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Runner]:
    path = tmp_path / "reference.onnx"
    save_onnx(tiny_engine.tiny_onnx(), path)
    with onnx_runner(path) as opened:
        yield opened


def test_describes_itself(runner: Runner) -> None:
    assert runner.inputs == [TensorSpec("images", "float32", (3, HEIGHT, WIDTH), 1, 4)]
    assert runner.outputs == [TensorSpec("ids", "uint8", (HEIGHT, WIDTH), 1, 4)]


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_agrees_with_the_reference(runner: Runner, reference: Runner, batch: int) -> None:
    inputs = images(batch)
    expected = reference.run(inputs)["ids"]
    assert len(np.unique(expected)) > 1
    result = runner.run(inputs)["ids"]
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def test_changing_batches_and_inputs_leave_nothing_behind(runner: Runner, reference: Runner) -> None:
    for batch, seed in ((2, 1), (1, 2), (4, 3), (2, 4), (2, 5)):
        inputs = images(batch, seed)
        np.testing.assert_array_equal(runner.run(inputs)["ids"], reference.run(inputs)["ids"])


def test_logits_come_out_as_float32(tmp_path: Path, tiny_architecture: None) -> None:
    from dataclasses import replace

    logits = {"name": "logits", "dtype": "float32", "shape": [CLASSES, HEIGHT, WIDTH]}
    metadata = replace(METADATA, tail="logits", outputs=[logits])
    results = []
    for runtime in RUNTIMES:
        with make_runner(runtime, tmp_path, metadata) as opened:
            results.append(opened.run(images(2))["logits"].copy())
    for result in results:
        assert result.shape == (2, CLASSES, HEIGHT, WIDTH)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, results[0], atol=1e-4)


def test_timed_execute_gives_seconds_and_the_outputs(runner: Runner, reference: Runner) -> None:
    inputs = images(2)
    runner.load(inputs)
    assert 0 < runner.timed_execute() < 5
    np.testing.assert_array_equal(runner.fetch()["ids"], reference.run(inputs)["ids"])


def test_a_loaded_input_stays_until_it_is_executed(runner: Runner) -> None:
    inputs = images(4)["images"]
    expected = runner.run({"images": inputs})["ids"].copy()
    runner.load({"images": inputs.copy()})
    junk = [np.full_like(inputs, 9) for _ in range(20)]  # where freed memory lies
    runner.execute()
    np.testing.assert_array_equal(runner.fetch()["ids"], expected)
    del junk


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: {"pictures": x}, "do not match"),
        (lambda x: {}, "do not match"),
        (lambda x: {"images": x, "more": x}, "do not match"),
        (lambda x: {"images": x.astype(np.float64)}, "float64"),
        (lambda x: {"images": x[:, :, :4]}, r"\[2, 3, 4, 12\]"),
        (lambda x: {"images": x[0]}, "images is float32"),
        (lambda x: {"images": np.repeat(x, 3, axis=0)}, "batch 6 is outside the engine's range"),
        (lambda x: {"images": x[:0]}, "batch 0 is outside"),
        (lambda x: {"images": np.asfortranarray(x)}, "not contiguous"),
        (lambda x: {"images": np.where(x > 1, np.nan, x).astype(np.float32)}, "NaN"),
        (lambda x: {"images": np.where(x > 1, np.inf, x).astype(np.float32)}, "NaN or infinity"),
    ],
)
def test_wrong_inputs_are_refused_before_the_engine_sees_them(runner: Runner, change, word: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SegforgeError, match=word):
        runner.run(change(images(2)["images"]))


def test_close_twice_and_before_open(tmp_path: Path, tiny_architecture: None) -> None:
    for runtime in RUNTIMES:
        opened = make_runner(runtime, tmp_path)
        opened.close()
        with opened:
            opened.run(images(1))
        opened.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_broken_engine_is_named(runtime: str, tmp_path: Path, tiny_architecture: None) -> None:
    broken = tmp_path / "engine.bin"
    broken.write_bytes(b"no engine at all" * 64)
    for path in (broken, tmp_path / "absent.bin"):
        with (
            pytest.raises(SegforgeError, match=path.name),
            open_runner(runtime, path, METADATA, precision="fp32", threads=1),
        ):
            pass


def test_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(SegforgeError, match="onnxruntime, openvino, torch"):
        open_runner("openvno", Path("x"), METADATA, precision="fp32", threads=0)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_missing_package_names_what_to_install(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_runner(runtime, tmp_path)
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(SegforgeError, match=rf"{runtime} is not installed[\s\S]*pip install"), made:
        pass


@pytest.mark.parametrize(("whole", "options"), [(False, {}), (True, {"NO_SUCH_PROPERTY": 1})])
def test_what_openvino_cannot_compile_is_named(tmp_path: Path, whole: bool, options: dict[str, int]) -> None:
    model = tiny_engine.tiny_onnx()
    if not whole:
        del model.graph.input[:]
    save_onnx(model, tmp_path / "typed.onnx")
    with pytest.raises(SegforgeError, match=r"cannot compile .*typed\.onnx(.|\n)*quantize"):
        runtime_module("openvino").build(BuildJob(tmp_path / "typed.onnx", METADATA, "fp32", 1, "cpu", options))


def test_the_serialised_graph_is_another_file_that_keeps_the_batch_range(tmp_path: Path) -> None:
    with make_runner("onnxruntime", tmp_path) as opened:
        assert opened.inputs[0].batch_max == METADATA.batch_max
    assert sha256_file(tmp_path / "onnxruntime.bin") != sha256_file(tmp_path / "typed.onnx")


def test_the_allocator_is_tuned_for_the_baseline() -> None:
    """A 64 MiB array that is freed stays in the process: the next one costs no page faults."""
    import subprocess

    code = (
        "import resource, sys\n"
        "import torch\n"
        "from segforge.runtimes.torch import tune_allocator\n"
        "if sys.argv[1] == 'tuned': assert tune_allocator()\n"
        "for _ in range(20):\n"
        "    torch.ones(16 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("tuned", "plain")
    }
    assert faults["tuned"] < faults["plain"] - 10 * 16384 * 0.5, faults


@pytest.mark.gpu
def test_torch_on_the_gpu_agrees(tmp_path: Path, tiny_architecture: None, reference: Runner) -> None:
    make_runner("torch", tmp_path)
    opened = open_runner("torch", tmp_path / "torch.bin", METADATA, precision="fp32", threads=0, device_kind="gpu")
    with opened:
        for batch in (1, 4, 2):
            inputs = images(batch, batch)
            result = opened.run(inputs)["ids"]
            assert (result == reference.run(inputs)["ids"]).mean() > 0.99
        opened.load(images(2))
        assert 0 < opened.timed_execute() < 5
