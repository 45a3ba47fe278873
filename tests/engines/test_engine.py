"""Engines that are what their manifests say, and refusals of every kind that are not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_engine
from fake_nvml import Card, FakeNvml
from tiny_engine import PASSPORT, VARIANT, engine_config, images, write_typed

from segforge import layout
from segforge.config.compose import known_devices
from segforge.config.engine import EngineConfig, MachineConfig
from segforge.engines import engine as engines
from segforge.engines.engine import Engine, Source, build_engine
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file, write_json
from segforge.graph.file import save_onnx
from segforge.machine import identity
from segforge.machine.identity import cpu
from segforge.process import usable_cores
from segforge.runtimes.core.base import EngineSpec
from segforge.runtimes.core.onnx import OnnxRunner
from stages.probe import probe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["cpu-onnxruntime", "cpu-openvino"])
def config(request: pytest.FixtureRequest, project: Path) -> EngineConfig:
    """A config whose typed.onnx and machine files stand in the current folder."""
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
    path = config.paths.manifest
    manifest = read_json(path, made_by="")
    change(manifest)
    write_json(path, manifest)


def test_build_open_run(config: EngineConfig) -> None:
    build_engine(config)
    paths = config.paths
    manifest = paths.read_manifest()
    assert manifest["engine_sha256"] == sha256_file(paths.engine)
    assert manifest["onnx_sha256"] == sha256_file(paths.typed)
    assert (manifest["variant"], manifest["target"], manifest["precision"]) == (VARIANT, config.target.name, "fp32")
    assert (manifest["batch_min"], manifest["batch_max"]) == (PASSPORT.batch_min, PASSPORT.batch_max)
    assert manifest["versions"] and all(manifest["versions"].values())
    assert manifest["flags"]
    assert manifest["device"] == cpu()
    with Engine.of(config).open() as engine, OnnxRunner(paths.typed) as reference:
        np.testing.assert_array_equal(engine.run(images(3))["ids"], reference.run(images(3))["ids"])


def test_the_same_build_is_not_done_twice(config: EngineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine(config)
    paths = config.paths
    before = (paths.engine.stat().st_mtime_ns, paths.manifest.read_bytes())
    build_engine(config)
    assert (paths.engine.stat().st_mtime_ns, paths.manifest.read_bytes()) == before
    assert "up to date" in capsys.readouterr().err


def test_the_manifest_is_the_same_but_for_the_bytes_and_the_seconds(built: EngineConfig) -> None:
    first = built.paths.read_manifest()
    built.paths.engine.unlink()
    build_engine(built)
    second = built.paths.read_manifest()
    for manifest in (first, second):
        manifest.pop("build_s")
        manifest.pop("engine_sha256")  # runtimes do not serialise to the same bytes every time
    assert first == second


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_manifest_is_built_anew(built: EngineConfig, content: bytes) -> None:
    built.paths.manifest.write_bytes(content)
    build_engine(built)
    assert built.paths.read_manifest()["engine_sha256"] == sha256_file(built.paths.engine)


def test_a_manifest_that_is_no_object_is_refused(built: EngineConfig) -> None:
    built.paths.manifest.write_text("[]")
    refused(built, "is no manifest", "stages/build.py")


def test_a_typed_file_of_another_variant(built: EngineConfig) -> None:
    write_typed(built, variant="another")
    refused(built, "of variant 'another'", "stages/quantize.py")


def test_another_onnx_file_builds_another_engine(built: EngineConfig) -> None:
    before = built.paths.read_manifest()
    write_typed(built, mean=[1.0, 2.0, 3.0])
    build_engine(built)
    after = built.paths.read_manifest()
    assert after["onnx_sha256"] != before["onnx_sha256"]
    assert after["key"] != before["key"]


def refused(config: EngineConfig, *words: str) -> None:
    with pytest.raises(SegforgeError) as caught:
        Engine.of(config)
    for word in (*words, "python stages/"):
        assert word in str(caught.value), str(caught.value)


def test_no_engine(project: Path) -> None:
    refused(prepared("cpu-onnxruntime"), "manifest.json is missing", "stages/build.py")


def test_a_missing_engine_beside_its_manifest(built: EngineConfig) -> None:
    built.paths.engine.unlink()
    refused(built, "it is missing", "stages/build.py")


def test_changed_bytes(built: EngineConfig) -> None:
    engine = built.paths.engine
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
        getattr(other.paths, name).write_bytes(getattr(built.paths, name).read_bytes())
    refused(other, "of precision 'fp32'")


def test_another_machine(built: EngineConfig) -> None:
    edit_manifest(built, lambda m: m["device"].update(name="Another CPU"))
    refused(built, "on another machine", "'Another CPU'", "stages/build.py")


def test_another_gpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of a card of this kind, met by one with another driver."""
    card = Card("NVIDIA H200", "GPU-1111")
    FakeNvml(monkeypatch, Card("NVIDIA A2", "GPU-0000"), card)
    config = prepared("h200-torch")
    source = Source.of(config)
    assert (source.uuid, source.spec.gpu, source.spec.device_kind) == ("GPU-1111", 1, "gpu")
    assert source.expected["device"] == {"name": "NVIDIA H200", "sm": "9.0", "memory_gib": 141, "driver": "580.1"}
    paths = config.paths
    paths.engine.write_bytes(b"weights")
    write_json(paths.manifest, {"engine_sha256": sha256_file(paths.engine), **source.expected})
    assert Engine.of(config).source.uuid == "GPU-1111"
    FakeNvml(monkeypatch, Card("NVIDIA H200", "GPU-2222"))  # as good as the one that it was built on
    assert (Engine.of(config).source.uuid, Engine.of(config).source.spec.gpu) == ("GPU-2222", 0)
    edit_manifest(config, lambda m: m["device"].update(driver="570.0"))
    refused(config, "on another machine", "driver '570.0', here '580.1'")
    FakeNvml(monkeypatch, Card("NVIDIA H100", "GPU-3333"))
    with pytest.raises(SegforgeError, match=r"device 'h200' is not here: NVIDIA H100 \(SM 9\.0, GPU-3333\)"):
        Engine.of(config)


def test_other_versions(built: EngineConfig) -> None:
    edit_manifest(built, lambda m: m["versions"].update(onnxruntime="0.0.1"))
    refused(built, "with other versions", "'0.0.1'")


def test_other_flags(built: EngineConfig) -> None:
    built.target.threads = 7
    refused(built, "with other flags", "intra_op_threads")


def test_a_machine_file_of_another_machine(built: EngineConfig) -> None:
    write_json(layout.machine("cpu"), {**cpu(), "usable_cores": cpu()["usable_cores"] + 1})
    refused(built, "cpu.json does not describe this machine", "usable_cores", "stages/probe.py")
    with pytest.raises(SegforgeError, match="does not describe this machine"):
        build_engine(built)


def test_versions_that_probe_has_not_seen(built: EngineConfig) -> None:
    """DVC decides by the file: an engine that knows better than it would never be rebuilt."""
    write_json(layout.installed("cpu", "onnxruntime"), {"onnxruntime": "0.0.1"})
    refused(built, "onnxruntime.json does not describe this machine", "'0.0.1'", "stages/probe.py")
    with pytest.raises(SegforgeError, match="does not describe this machine"):
        build_engine(built)


def test_a_gpu_target_of_a_runtime_on_the_cpu_builds_nothing(
    built: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml(monkeypatch, Card("NVIDIA H200", "GPU-1111"))
    h200 = next(device for device in known_devices() if device.name == "h200")
    config = replace(built, target=replace(built.target, device=h200))
    probe(MachineConfig())
    with pytest.raises(SegforgeError, match=r"onnxruntime does not run on a gpu\n  expected: a target on a cpu"):
        build_engine(config)


def test_without_a_machine_file_nothing_is_built_or_opened(built: EngineConfig) -> None:
    layout.machine("cpu").unlink()
    refused(built, "cpu.json is missing", "stages/probe.py")
    with pytest.raises(SegforgeError, match=r"cpu\.json is missing"):
        build_engine(built)


def test_other_devices_and_other_runtimes_make_no_engine_stale(
    built: EngineConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Source.of(built).key
    write_json(layout.machine("h200"), {"name": "NVIDIA H200", "driver": "1"})
    write_json(layout.installed("cpu", "openvino"), {"openvino": "0.0.1"})
    FakeNvml(monkeypatch, Card("NVIDIA H200", "GPU-1111"))  # a card that was put in beside the processor
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: there(name) if name == "onnxruntime" else "0.0.1")
    assert Engine.of(built).source.key == key
    build_engine(built)
    assert "up to date" in capsys.readouterr().err
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "onnxruntime" else there(name))
    probe(MachineConfig())
    assert Source.of(built).key != key
    refused(built, "with other versions", f"onnxruntime {there('onnxruntime')!r}, here '0.0.1'")


def test_the_own_device_makes_an_engine_stale(built: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Source.of(built).key
    monkeypatch.setattr(identity, "cpu", lambda: {**cpu(), "usable_cores": 999})
    probe(MachineConfig())
    assert Source.of(built).key != key
    refused(built, "on another machine", f"usable_cores {usable_cores()}, here 999", "stages/build.py")


def test_an_engine_is_read_and_hashed_once_however_often_it_is_opened(
    built: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Engine.of(built)
    assert (made.sha256, made.onnx_sha256) == (sha256_file(built.paths.engine), sha256_file(built.paths.typed))
    assert made.passport == PASSPORT
    for name in ("sha256_file", "load_own"):
        monkeypatch.delattr(engines, name)
    for threads in (None, 1, 2):
        with made.open(threads) as runner:
            runner.run(images(2))


def test_threads_override_the_targets(built: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Engine.of(built)
    seen: list[int] = []
    monkeypatch.setattr(engines, "runtime_of", lambda name: SimpleNamespace(EngineRunner=keep))

    def keep(engine: Path, spec: EngineSpec) -> None:
        assert engine == built.paths.engine
        seen.append(spec.threads)

    for threads in (None, 3, 0):
        made.open(threads)
    assert seen == [built.target.threads, 3, 0]


def test_a_batch_outside_the_range(built: EngineConfig) -> None:
    with Engine.of(built).open() as engine, pytest.raises(SegforgeError, match=r"batch 5 is outside[\s\S]*from 1 to 4"):
        engine.run(images(5))


def test_an_engine_that_gives_nonsense_is_not_kept(project: Path) -> None:
    from onnx import numpy_helper

    config = prepared("cpu-onnxruntime")
    model = tiny_engine.tiny_onnx(PASSPORT, "logits")
    broken = np.full(5, np.nan, np.float32)
    bias = next(i for i in model.graph.initializer if i.name == "2.bias")
    bias.CopyFrom(numpy_helper.from_array(broken, "2.bias"))
    save_onnx(model, config.paths.typed)
    with pytest.raises(SegforgeError, match="no finite values"):
        build_engine(config)
    assert not config.paths.engine.exists()
    assert not config.paths.manifest.exists()


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
    if not config.paths.manifest.exists():
        refused(config, "manifest.json is missing")
    build_engine(config)
    with Engine.of(config).open() as engine:
        engine.run(images(1))
    assert not list(config.paths.folder.glob(".*.tmp"))


def test_the_stage_says_what_it_does_in_one_line_each(stage: Callable[..., Any], project: Path) -> None:
    prepared("cpu-onnxruntime")
    done = stage("build", f"variant={VARIANT}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"build: .*typed\.onnx -> .*engine\.bin\n", done.stderr)
    assert json.loads(Path("models", VARIANT, "cpu-onnxruntime/fp32/manifest.json").read_text())["build_s"] > 0
