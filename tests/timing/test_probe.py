"""The machine's identity: the same bytes every time, and nothing in it that changes on its own."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segforge import layout
from segforge.config import MachineConfig
from segforge.timing import probe as room
from segforge.timing.probe import gpus, installed_versions, machine_identity, probe


def test_the_same_bytes_every_time(project: Path, stage: Callable[..., Any]) -> None:
    probe(MachineConfig())
    first = layout.MACHINE.read_bytes()
    done = stage("probe")
    assert done.returncode == 0, done.stderr
    assert layout.MACHINE.read_bytes() == first


def test_it_tells_what_an_engine_depends_on() -> None:
    identity = machine_identity()
    assert identity["cpu"]["model"]
    assert identity["cpu"]["usable_cores"] >= 1
    assert identity["cpu"]["memory_gib"] >= 1
    assert identity["system"]["kernel"]
    assert set(identity["versions"]) >= {"torch", "onnxruntime", "openvino", "onnx"}
    assert socket.gethostname() not in json.dumps(identity)


def test_versions_come_without_imports() -> None:
    found = installed_versions(("onnx", "no-such-package"))
    assert found["onnx"]
    assert found["no-such-package"] is None


@pytest.mark.skipif(not hasattr(room.os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_usable_cores_follow_the_affinity_mask() -> None:
    import os

    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine_identity()["cpu"]["usable_cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint('NVIDIA H200, GPU-1234, 143771 MiB, 580.1, 9.0')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == [
        {"name": "NVIDIA H200", "uuid": "GPU-1234", "memory": "143771 MiB", "driver": "580.1", "sm": "9.0"}
    ]
    tool.write_text(f"#!{sys.executable}\nimport sys; sys.exit(9)\n")  # a driver that does not answer
    assert gpus() == []
