"""What a device can do at most, measured for a moment."""

import re
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import Card, FakeNvml
from own_clock import Clock

from segforge import layout
from segforge.ceilings import cpu, gpu
from segforge.ceilings.cpu import best_seconds
from segforge.config.compose import known_devices
from segforge.config.engine import MachineConfig
from segforge.errors import SegforgeError
from segforge.files import read_json, write_json
from segforge.machine.watch import CpuWatch
from segforge.process import usable_cores
from segforge.timing.limit import read_ceilings
from stages.ceilings import ceilings
from stages.probe import probe


def machine(device: str, seconds: float = 0.01) -> MachineConfig:
    """conf/machine.yaml with a device of conf/device/."""
    (found,) = (one for one in known_devices() if one.name == device)
    return MachineConfig(device=found, ceilings_s=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which this test's figures are taken."""
    made = Clock()
    monkeypatch.setattr(cpu, "time", made)
    return made


def test_best_seconds_is_the_undisturbed_run(clock: Clock) -> None:
    waits = iter([0.001, 0.02, 0.005, 0.02, 0.02])  # the first only warms up
    assert best_seconds(lambda: clock.run(next(waits)), 0.06) == pytest.approx(0.005)
    assert not list(waits)


def test_ceilings_are_measured_and_noted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SegforgeError, match=r"stages/probe\.py"):
        ceilings(machine("cpu", 0.02))
    write_json(layout.machine("cpu"), {"name": "Another CPU"})
    with pytest.raises(SegforgeError, match=r"stages/probe\.py, then python stages/ceilings\.py device=cpu"):
        ceilings(machine("cpu", 0.02))
    probe(machine("cpu"))
    ceilings(machine("cpu", 0.02))
    found = read_json(layout.ceilings("cpu"), made_by="")
    assert found["threads"] == usable_cores()
    assert set(found["gflops"]) >= {"fp32", "int8"}
    assert set(found["copy_gib_s"]) == {"1", "16", "256"}
    assert all(rate > 0 for table in (found["gflops"], found["copy_gib_s"]) for rate in table.values())
    assert isinstance(found["notes"], dict)
    assert read_ceilings("cpu").gflops == found["gflops"]
    assert re.search(r"ceilings: fp32 \d+ GFLOP/s, int8 \d+ GFLOP/s", capsys.readouterr().err)


def test_ceilings_without_openvino_say_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    probe(machine("cpu"))
    ceilings(machine("cpu", 0.01))
    found = read_json(layout.ceilings("cpu"), made_by="")
    assert "bf16" not in found["gflops"]
    assert "openvino is not installed" in found["notes"]["bf16"]
    assert "bf16: openvino is not installed" in capsys.readouterr().err


def test_a_machine_that_others_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(CpuWatch):
        def __exit__(self, *error: object) -> None:
            self.others = 0.2

    monkeypatch.setattr(cpu, "CpuWatch", Busy)
    for name in ("_onnxruntime_gflops", "_openvino_gflops", "_copy_gib_s"):
        monkeypatch.setattr(cpu, name, lambda what, seconds: 1.23456)
    rates, notes = cpu.measure(0.01)
    assert rates["gflops"] == {"fp32": 1.2, "int8": 1.2, "bf16": 1.2}
    assert rates["copy_gib_s"] == {"1": 1.23, "16": 1.23, "256": 1.23}
    assert notes == {"load": "other processes took 20% of the cores; measure again on a quiet machine"}


def test_a_gpu_has_a_file_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the card which the process sees there; the processor's stays."""
    FakeNvml(monkeypatch, Card("NVIDIA H100", "GPU-1111"), Card("NVIDIA H200", "GPU-2222"))
    write_json(layout.ceilings("cpu"), {"gflops": {}, "copy_gib_s": {}})
    measured: list[tuple[float, int]] = []

    def measure(seconds: float, number: int) -> tuple[dict[str, Any], dict[str, str]]:
        measured.append((seconds, number))
        return {"gflops": {"fp32": 5e4}, "copy_gib_s": {"16": 3e3}}, {"gpu fp8": "no such product"}

    monkeypatch.setattr(gpu, "measure", measure)
    probe(machine("h200"))
    ceilings(machine("h200", 0.5))
    assert measured == [(0.5, 1)]
    assert read_json(layout.ceilings("h200"), made_by="")["notes"] == {"gpu fp8": "no such product"}
    assert read_ceilings("h200").gflops == {"fp32": 5e4}
    assert read_ceilings("cpu").gflops == {}
    layout.machine("h100").unlink()
    with pytest.raises(SegforgeError, match=r"h100\.json is missing"):
        ceilings(machine("h100"))


def test_ceilings_of_a_gpu_that_is_not_here_or_cannot_be_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch)
    with pytest.raises(SegforgeError, match="device 'h200' is not here: no NVIDIA GPU"):
        ceilings(machine("h200"))
    FakeNvml(monkeypatch, Card("NVIDIA H200", "GPU-2222"))
    monkeypatch.setattr(gpu, "measure", lambda seconds, number: ({}, {"gpu": "PyTorch cannot use it"}))
    probe(machine("h200"))
    with pytest.raises(SegforgeError, match="nothing of h200 could be measured"):
        ceilings(machine("h200"))
    assert not layout.ceilings("h200").exists()


def test_a_gpu_that_pytorch_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(number: int) -> None:
        raise RuntimeError("no CUDA\nand more")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    assert gpu.measure(0.01, 0) == ({}, {"gpu": "PyTorch cannot use it: no CUDA"})


@pytest.mark.gpu
def test_the_ceilings_of_a_gpu() -> None:
    from segforge.ceilings.gpu import copy_gib_s, gflops

    rates, notes = gflops(0.05)
    assert rates["fp32"] < rates["fp16"]
    assert set(rates) | {name.removeprefix("gpu ") for name in notes} == {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}
    assert copy_gib_s(256, 0.05) > 100
