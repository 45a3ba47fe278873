"""Engines that are what their manifests say, and refusals of every kind that are not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_engine
from tiny_engine import METADATA, VARIANT, engine_config, images, write_typed

from segforge import layout
from segforge.config import EngineConfig, MachineConfig
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file, write_json
from segforge.onnx.metadata import save_onnx
from segforge.runtimes import onnx_runner
from segforge.runtimes.build import build_engine, open_engine, paths_of, read_manifest
from segforge.timing.probe import machine_identity, probe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["cpu-onnxruntime", "cpu-openvino"])
def config(request: pytest.FixtureRequest, project: Path) -> EngineConfig:
    """A config whose typed.onnx and machine.json stand in the current folder."""
    return prepared(request.param)


@pytest.fixture
def built(project: Path) -> EngineConfig:
    config = prepared("cpu-onnxruntime")
    build_engine(config)
    return config


def prepared(target: str) -> EngineConfig:
    config = engine_config(ROOT, f"target={target}")
    write_typed(config)
    probe(MachineConfig())
    return config


def edit_manifest(config: EngineConfig, change: Callable[[dict[str, Any]], object]) -> None:
    path = paths_of(config).manifest
    manifest = read_json(path, made_by="")
    change(manifest)
    write_json(path, manifest)


def test_build_open_run(config: EngineConfig) -> None:
    build_engine(config)
    paths = paths_of(config)
    manifest = read_manifest(paths)
    assert manifest["engine_sha256"] == sha256_file(paths.engine)
    assert manifest["onnx_sha256"] == sha256_file(paths.typed)
    assert (manifest["variant"], manifest["target"], manifest["precision"]) == (VARIANT, config.target.name, "fp32")
    assert (manifest["batch_min"], manifest["batch_max"]) == (METADATA.batch_min, METADATA.batch_max)
    assert manifest["versions"] and all(manifest["versions"].values())
    assert manifest["flags"]
    assert manifest["device"]["cpu"] == machine_identity()["cpu"]
    with open_engine(config) as engine, onnx_runner(paths.typed) as reference:
        np.testing.assert_array_equal(engine.run(images(3))["ids"], reference.run(images(3))["ids"])


def test_the_same_build_is_not_done_twice(config: EngineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine(config)
    paths = paths_of(config)
    before = (paths.engine.stat().st_mtime_ns, paths.manifest.read_bytes())
    build_engine(config)
    assert (paths.engine.stat().st_mtime_ns, paths.manifest.read_bytes()) == before
    assert "up to date" in capsys.readouterr().err


def test_the_manifest_is_the_same_but_for_the_bytes_and_the_seconds(built: EngineConfig) -> None:
    first = read_manifest(paths_of(built))
    paths_of(built).engine.unlink()
    build_engine(built)
    second = read_manifest(paths_of(built))
    for manifest in (first, second):
        manifest.pop("build_s")
        manifest.pop("engine_sha256")  # runtimes do not serialise to the same bytes every time
    assert first == second


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_manifest_is_built_anew(built: EngineConfig, content: bytes) -> None:
    paths_of(built).manifest.write_bytes(content)
    build_engine(built)
    assert read_manifest(paths_of(built))["engine_sha256"] == sha256_file(paths_of(built).engine)


def test_a_manifest_that_is_no_object_is_refused(built: EngineConfig) -> None:
    paths_of(built).manifest.write_text("[]")
    refused(built, "is no manifest", "stages/build.py")


def test_a_typed_file_of_another_variant(built: EngineConfig) -> None:
    write_typed(built, variant="another")
    refused(built, "of variant 'another'", "stages/quantize.py")


def test_another_onnx_file_builds_another_engine(built: EngineConfig) -> None:
    before = read_manifest(paths_of(built))
    write_typed(built, mean=[1.0, 2.0, 3.0])
    build_engine(built)
    after = read_manifest(paths_of(built))
    assert after["onnx_sha256"] != before["onnx_sha256"]
    assert after["key"] != before["key"]


def refused(config: EngineConfig, *words: str) -> None:
    with pytest.raises(SegforgeError) as caught:
        open_engine(config)
    for word in (*words, "python stages/"):
        assert word in str(caught.value), str(caught.value)


def test_no_engine(project: Path) -> None:
    refused(prepared("cpu-onnxruntime"), "manifest.json is missing", "stages/build.py")


def test_a_missing_engine_beside_its_manifest(built: EngineConfig) -> None:
    paths_of(built).engine.unlink()
    refused(built, "it is missing", "stages/build.py")


def test_changed_bytes(built: EngineConfig) -> None:
    engine = paths_of(built).engine
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    refused(built, "not those of its manifest", f"variant={VARIANT} target=cpu-onnxruntime precision=fp32")


def test_another_onnx_file(built: EngineConfig) -> None:
    write_typed(built, mean=[1.0, 2.0, 3.0])
    refused(built, "another ONNX file", "stages/build.py")


@pytest.mark.parametrize("name", ["variant", "target", "precision"])
def test_a_swapped_engine(built: EngineConfig, name: str) -> None:
    edit_manifest(built, lambda m: m.update({name: "another"}))
    refused(built, f"of {name} 'another'", "stages/build.py")


def test_an_engine_copied_from_another_precision(built: EngineConfig) -> None:
    other = engine_config(ROOT, "target=cpu-onnxruntime", "precision=int8")
    write_typed(other)
    for name in ("engine", "manifest"):
        getattr(paths_of(other), name).write_bytes(getattr(paths_of(built), name).read_bytes())
    refused(other, "of precision 'fp32'")


def test_another_machine(built: EngineConfig) -> None:
    edit_manifest(built, lambda m: m["device"]["cpu"].update(model="Another CPU"))
    refused(built, "on another machine", "'Another CPU'", "stages/build.py")


def test_another_gpu(built: EngineConfig) -> None:
    edit_manifest(built, lambda m: m["device"].update(gpus=[{"name": "Another GPU"}]))
    refused(built, "on another machine", "Another GPU")


def test_other_versions(built: EngineConfig) -> None:
    edit_manifest(built, lambda m: m["versions"].update(onnxruntime="0.0.1"))
    refused(built, "with other versions", "'0.0.1'")


def test_other_flags(built: EngineConfig) -> None:
    built.target.runtime.threads = 7
    refused(built, "with other flags", "intra_op_threads")


def test_a_machine_file_of_another_machine(built: EngineConfig) -> None:
    identity = machine_identity()
    identity["cpu"]["usable_cores"] += 1
    write_json(layout.MACHINE, identity)
    refused(built, "machine.json does not describe this machine", "usable_cores", "stages/probe.py")
    with pytest.raises(SegforgeError, match="does not describe this machine"):
        build_engine(built)


def test_a_batch_outside_the_range(built: EngineConfig) -> None:
    with open_engine(built) as engine, pytest.raises(SegforgeError, match=r"batch 5 is outside[\s\S]*from 1 to 4"):
        engine.run(images(5))


def test_an_engine_that_gives_nonsense_is_not_kept(project: Path) -> None:
    from onnx import numpy_helper

    config = prepared("cpu-onnxruntime")
    model = tiny_engine.tiny_onnx(METADATA, "logits")
    broken = np.full(5, np.nan, np.float32)
    bias = next(i for i in model.graph.initializer if i.name == "2.bias")
    bias.CopyFrom(numpy_helper.from_array(broken, "2.bias"))
    save_onnx(model, paths_of(config).typed)
    with pytest.raises(SegforgeError, match="no finite values"):
        build_engine(config)
    assert not paths_of(config).engine.exists()
    assert not paths_of(config).manifest.exists()


def test_weights_of_another_checkpoint(project: Path) -> None:
    config = prepared("cpu-torch")
    weights = layout.VariantPaths(VARIANT).checkpoint / "best.safetensors"
    with pytest.raises(SegforgeError, match=r"best\.safetensors is missing"):
        build_engine(config)
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"other weights")
    with pytest.raises(SegforgeError, match="not the checkpoint that"):
        build_engine(config)


@pytest.mark.parametrize("stop_after_s", [0.0, 0.02, 0.1])
def test_a_killed_build_leaves_nothing_that_opens(project: Path, stop_after_s: float) -> None:
    """Killed beside its own start message, while it compiles or while it writes."""
    config = prepared("cpu-openvino")
    words = [f"variant={VARIANT}", "target=cpu-openvino"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "stages/build.py", *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "build:" in run.stderr.readline()
        time.sleep(stop_after_s)
        run.send_signal(signal.SIGKILL)
    if not paths_of(config).manifest.exists():
        refused(config, "manifest.json is missing")
    build_engine(config)
    with open_engine(config) as engine:
        engine.run(images(1))
    assert not list(paths_of(config).folder.glob(".*.tmp"))


def test_the_stage_says_what_it_does_in_one_line_each(stage: Callable[..., Any], project: Path) -> None:
    prepared("cpu-onnxruntime")
    done = stage("build", f"variant={VARIANT}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"build: .*typed\.onnx -> .*engine\.bin\n", done.stderr)
    assert json.loads(Path("models", VARIANT, "cpu-onnxruntime/fp32/manifest.json").read_text())["build_s"] > 0
