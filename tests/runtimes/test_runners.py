"""One contract for every runtime in the registry, on the same tiny network."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_engine
from tiny_engine import CLASSES, HEIGHT, PASSPORT, WIDTH, images

from segforge import architectures
from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.graph.file import save_onnx
from segforge.passport import Passport, TensorSpec
from segforge.precisions import TYPINGS
from segforge.runtimes import RUNTIMES, runtime_of
from segforge.runtimes.core.base import EngineSpec, Runner
from segforge.runtimes.core.onnx import OnnxRunner


@pytest.fixture
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network under the name `tiny` in the registry of architectures."""
    import torch

    from segforge.architectures.core.base import Architecture

    def build(backbone: str, classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, classes, 1))

    tiny = SimpleNamespace(ARCHITECTURE=Architecture(build=build, backbones=("none",), backbone_part="0"))
    monkeypatch.setattr(architectures, "FAMILIES", (*architectures.FAMILIES, "tiny"))
    monkeypatch.setitem(sys.modules, "segforge.architectures.tiny", tiny)


def spec_of(passport: Passport = PASSPORT, precision: str = "fp32", **changes: Any) -> EngineSpec:
    """On one core of the CPU, unless `changes` say otherwise."""
    return EngineSpec(passport, precision, **{"threads": 1, **changes})


def open_runner(runtime: str, engine: Path, spec: EngineSpec) -> Runner:
    runner: Runner = runtime_of(runtime).EngineRunner(engine, spec)
    return runner


def make_runner(runtime: str, folder: Path, passport: Passport = PASSPORT) -> Runner:
    """A runner over the tiny network, through the runtime's own `build`."""
    from safetensors.numpy import save_file

    typed, engine = folder / "typed.onnx", folder / f"{runtime}.bin"
    save_onnx(tiny_engine.tiny_onnx(passport, passport.tail), typed)
    spec = spec_of(passport)
    if runtime == "torch":
        save_file(tiny_engine.weights(), engine)
    else:
        engine.write_bytes(runtime_of(runtime).build(typed, spec))
    return open_runner(runtime, engine, spec)


@pytest.fixture(params=RUNTIMES)
def runner(request: pytest.FixtureRequest, tmp_path: Path, tiny_architecture: None) -> Iterator[Runner]:
    with make_runner(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Runner]:
    path = tmp_path / "reference.onnx"
    save_onnx(tiny_engine.tiny_onnx(), path)
    with OnnxRunner(path) as opened:
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
    logits = {"name": "logits", "dtype": "float32", "shape": [CLASSES, HEIGHT, WIDTH]}
    passport = replace(PASSPORT, tail="logits", outputs=[logits])
    results = []
    for runtime in RUNTIMES:
        with make_runner(runtime, tmp_path, passport) as opened:
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
        with pytest.raises(SegforgeError, match=path.name), open_runner(runtime, path, spec_of()):
            pass


def test_unknown_runtime_lists_the_known() -> None:
    with pytest.raises(SegforgeError, match="onnxruntime, openvino, torch"):
        open_runner("openvno", Path("x"), spec_of())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_precision_that_a_runtime_does_not_compute_in_is_refused_never_replaced(
    runtime: str, tmp_path: Path, tiny_architecture: None
) -> None:
    computed = {"onnxruntime": {"fp32", "int8"}, "openvino": {"fp32", "bf16", "int8"}, "torch": {"fp32"}}[runtime]
    make_runner(runtime, tmp_path)
    module, typed, engine = runtime_of(runtime), tmp_path / "typed.onnx", tmp_path / f"{runtime}.bin"
    for precision in computed:
        assert module.flags(spec_of(precision=precision))
    others = {precision for typing in TYPINGS.values() for precision in typing.gives} | {"fp16", "fp8", "int7"}
    for precision in others - computed:
        spec = spec_of(precision=precision)
        for work in (module.flags, lambda s: module.build(typed, s), lambda s: module.EngineRunner(engine, s)):
            with pytest.raises(SegforgeError, match=f"{runtime} does not compute in {precision}") as caught:
                work(spec)
            assert all(name in str(caught.value) for name in computed)


@pytest.mark.parametrize("kind", ["cpu", "gpu", "npu"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_device_that_a_runtime_does_not_run_on_is_refused(
    runtime: str, kind: str, tmp_path: Path, tiny_architecture: None
) -> None:
    make_runner(runtime, tmp_path)
    module, typed, engine = runtime_of(runtime), tmp_path / "typed.onnx", tmp_path / f"{runtime}.bin"
    spec = spec_of(device_kind=kind)
    if kind in {"torch": ("cpu", "gpu")}.get(runtime, ("cpu",)):
        assert module.flags(spec)
        return
    for work in (module.flags, lambda s: module.build(typed, s), lambda s: module.EngineRunner(engine, s)):
        with pytest.raises(SegforgeError, match=f"{runtime} does not run on a {kind}"):
            work(spec)


def test_the_precisions_of_openvino_are_its_hints() -> None:
    hints = {
        p: runtime_of("openvino").flags(spec_of(precision=p))["INFERENCE_PRECISION_HINT"] for p in ("fp32", "bf16")
    }
    assert hints == {"fp32": "f32", "bf16": "bf16"}


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
        runtime_of("openvino").build(tmp_path / "typed.onnx", spec_of(options=options))


def test_the_serialised_graph_is_another_file_that_keeps_the_batch_range(tmp_path: Path) -> None:
    with make_runner("onnxruntime", tmp_path) as opened:
        assert opened.inputs[0].batch_max == PASSPORT.batch_max
    assert sha256_file(tmp_path / "onnxruntime.bin") != sha256_file(tmp_path / "typed.onnx")


def test_the_allocator_is_tuned_for_the_baseline() -> None:
    """A 64 MiB array that is freed stays in the process: the next one costs no page faults."""
    import subprocess

    code = (
        "import resource, sys\n"
        "import torch\n"
        "from segforge.process import tune_allocator\n"
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
    with open_runner("torch", tmp_path / "torch.bin", spec_of(threads=0, device_kind="gpu")) as opened:
        for batch in (1, 4, 2):
            inputs = images(batch, batch)
            result = opened.run(inputs)["ids"]
            assert (result == reference.run(inputs)["ids"]).mean() > 0.99
        opened.load(images(2))
        assert 0 < opened.timed_execute() < 5
