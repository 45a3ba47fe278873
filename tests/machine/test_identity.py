"""The machine's identity: the same bytes every time, and nothing in it that changes on its own."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import GIB, Card, FakeNvml

from segforge import layout
from segforge.config.compose import known_devices
from segforge.config.engine import Device, MachineConfig, Recognise
from segforge.errors import SegforgeError
from segforge.files import read_json, write_json
from segforge.machine.identity import (
    Gpu,
    cpu,
    differences,
    find_gpu,
    gpus,
    identity,
    installed_versions,
    require_device,
    require_probed,
    visible,
)
from segforge.runtimes import RUNTIMES
from stages.probe import probe

CPU = Device(name="cpu", kind="cpu", precisions=["fp32"])
H100 = Card("NVIDIA H100 80GB HBM3", "GPU-aaaa", memory=80 * GIB)
H200 = Card("NVIDIA H200", "GPU-abcd")
OTHER_H200 = Card("NVIDIA H200", "GPU-bbbb")
OLD = Card("NVIDIA H200 mock-up", "GPU-cccc", sm=(8, 0))


def gpu(**recognise: Any) -> Device:
    return Device(name="h200", kind="gpu", precisions=["fp32"], recognise=Recognise(**recognise))


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(layout.MACHINES.rglob("*.json"))}


def test_the_same_bytes_every_time(project: Path, stage: Callable[..., Any]) -> None:
    probe(MachineConfig())
    first = written()
    assert {str(layout.machine("cpu")), *(str(layout.installed("cpu", runtime)) for runtime in RUNTIMES)} <= set(first)
    done = stage("probe")
    assert done.returncode == 0, done.stderr
    assert written() == first


def test_it_tells_what_an_engine_depends_on(project: Path) -> None:
    found = identity(CPU)
    assert found
    assert found["name"]
    assert found["usable_cores"] >= 1
    assert found["memory_gib"] >= 1
    assert found["system"] == f"{platform.system()} {platform.machine()}"
    assert found["instructions"] == sorted(set(found["instructions"]))
    probe(MachineConfig())
    assert read_json(layout.machine("cpu"), made_by="") == found
    versions = {runtime: read_json(layout.installed("cpu", runtime), made_by="") for runtime in RUNTIMES}
    assert {name for own in versions.values() for name in own} >= {"torch", "torchvision", "onnxruntime", "openvino"}
    assert versions == {runtime: installed_versions(packages) for runtime, packages in RUNTIMES.items()}
    assert socket.gethostname() not in json.dumps([found, versions])


def test_every_device_that_is_here_has_a_file_and_those_of_others_stay(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml(monkeypatch, H100)
    elsewhere = {"name": "NVIDIA H200", "sm": "9.0", "memory_gib": 141, "driver": "570"}
    write_json(layout.machine("h200"), elsewhere)
    probe(MachineConfig())
    assert {path.stem for path in layout.MACHINES.glob("*.json")} == {"cpu", "h100", "h200"}
    assert read_json(layout.machine("h200"), made_by="") == elsewhere
    assert read_json(layout.machine("h100"), made_by="") == {
        "name": "NVIDIA H100 80GB HBM3",
        "sm": "9.0",
        "memory_gib": 80,
        "driver": "580.1",
    }


def test_a_runtime_that_is_not_installed_has_no_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.probe as program

    monkeypatch.setattr(program, "RUNTIMES", {"onnxruntime": ("onnxruntime",), "absent": ("numpy", "no-such-package")})
    probe(MachineConfig())
    assert layout.installed("cpu", "onnxruntime").is_file()
    assert not layout.installed("cpu", "absent").exists()
    write_json(layout.installed("cpu", "absent"), {"numpy": "1", "no-such-package": "1"})  # it was, and is no more
    probe(MachineConfig())
    assert not layout.installed("cpu", "absent").exists()


def test_versions_come_without_imports() -> None:
    found = installed_versions(("onnx", "no-such-package"))
    assert found["onnx"]
    assert found["no-such-package"] is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_usable_cores_follow_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cpu()["usable_cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_gpus_are_read_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(monkeypatch, Card("NVIDIA H200", "GPU-1234", sm=(9, 0), memory=143_771 * 2**20), H100)
    assert gpus() == [
        Gpu(name="NVIDIA H200", uuid="GPU-1234", sm="9.0", memory_gib=140, driver="580.1"),
        Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-aaaa", sm="9.0", memory_gib=80, driver="580.1"),
    ]
    assert nvml.open == 0
    for code in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):  # or it does not answer
        nvml.error = code
        assert gpus() == []


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "abc"),
        ("", ""),
        (" ", ""),
        ("0", "a"),
        ("2,0", "ca"),
        (" 1 , 2 ", "bc"),
        ("GPU-b1", "b"),
        ("GPU-b", "b"),
        ("GPU-c2e1,0", "ca"),
        ("1,nonsense,0", "b"),
        ("1,-1,0", "b"),
        ("3,0", ""),
        ("0,,1", "a"),
        ("GPU-,0", ""),  # of more cards than one
        ("GPU-d,0", ""),
        ("NoDevFiles", ""),
    ],
)
def test_visible_is_what_cuda_visible_devices_leaves(chosen: str | None, left: str) -> None:
    cards = {"a": "GPU-a0d1", "b": "GPU-b1", "c": "GPU-c2e1"}
    assert visible(list(cards.values()), chosen) == [cards[letter] for letter in left]


def test_gpus_follow_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, H100, H200, OTHER_H200)
    for chosen, left in (("2,0", [OTHER_H200, H100]), ("GPU-ab", [H200]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert [card.uuid for card in gpus()] == [card.uuid for card in left]


@pytest.mark.parametrize(
    ("recognise", "expected"),
    [
        ({}, (0, H100)),
        ({"name": "H200"}, (1, OLD)),
        ({"name": "h200", "sm": "9.0"}, (2, H200)),
        ({"name": "H200", "sm": "9.0", "uuid": "GPU-bbbb"}, (3, OTHER_H200)),
        ({"uuid": "GPU-bbbb"}, (3, OTHER_H200)),
        ({"sm": "8.0"}, (1, OLD)),
        ({"name": "B200"}, None),
        ({"name": "H200", "sm": "10.0"}, None),
        ({"name": "H100", "uuid": "GPU-bbbb"}, None),
    ],
)
def test_a_gpu_is_found_by_name_sm_and_uuid(
    monkeypatch: pytest.MonkeyPatch, recognise: dict[str, str], expected: tuple[int, Card] | None
) -> None:
    FakeNvml(monkeypatch, H100, OLD, H200, OTHER_H200)
    found = find_gpu(gpu(**recognise))
    assert (found and (found[0], found[1].uuid)) == (expected and (expected[0], expected[1].uuid))


@pytest.mark.parametrize(
    ("words", "name", "is_it"),
    [
        ("H200", "NVIDIA GH200 480GB", False),
        ("T4", "NVIDIA T400 4GB", False),
        ("A40", "NVIDIA RTX A4000", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", True),
        ("h200", "NVIDIA H200 NVL", True),
        ("A100-SXM4", "NVIDIA A100-SXM4-80GB", True),
    ],
)
def test_a_name_counts_by_its_whole_words(words: str, name: str, is_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, Card(name))
    assert (find_gpu(gpu(name=words)) is not None) == is_it


def test_programs_count_cards_as_nvml_does(project: Path, stage: Callable[..., Any]) -> None:
    """CUDA's own order has the fastest card first: on a host of several kinds another card would be meant."""
    program = project / "stages" / "order.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        "import os\nfrom segforge.config.engine import MachineConfig\nfrom segforge.stage import run_stage\n"
        "def order(config: MachineConfig) -> None:\n    print(os.environ['CUDA_DEVICE_ORDER'])\n"
        "run_stage(order)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "PCI_BUS_ID", done.stderr


def test_a_gpu_is_counted_among_those_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, H100, H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = find_gpu(gpu(name="H200"))
    assert found and (found[0], found[1].uuid) == (0, "GPU-abcd")
    assert find_gpu(gpu(name="H100")) is None


def test_which_of_several_equal_cards_it_is_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, H200, OTHER_H200)
    first = identity(gpu(uuid=H200.uuid))
    assert first
    assert first == identity(gpu(uuid=OTHER_H200.uuid))
    assert H200.uuid not in json.dumps(first)


def test_the_devices_of_the_project_are_told_apart(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {device.name: device for device in known_devices()}
    for card, name in ((H100, "h100"), (H200, "h200")):
        FakeNvml(monkeypatch, card)
        assert [d.name for d in devices.values() if d.kind == "gpu" and identity(d)] == [name]


def test_a_device_that_is_not_here_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, H100, OLD)
    with pytest.raises(SegforgeError) as caught:
        require_device(gpu(name="H200", sm="9.0"))
    for words in (
        "device 'h200' is not here",
        "NVIDIA H100 80GB HBM3 (SM 9.0, GPU-aaaa)",
        "NVIDIA H200 mock-up (SM 8.0, GPU-cccc)",
        "a gpu with name H200, sm 9.0",
        "conf/device/h200.yaml",
    ):
        assert words in str(caught.value)
    FakeNvml(monkeypatch)
    with pytest.raises(SegforgeError, match=r"not here: no NVIDIA GPU(.|\n)*a gpu that this process can reach"):
        require_device(gpu())
    other = Device(name="cpu", kind="cpu", precisions=[], recognise=Recognise(name="Another CPU"))
    with pytest.raises(SegforgeError, match=rf"not here: {re.escape(cpu()['name'])}(.|\n)*a cpu with name Another CPU"):
        require_device(other)
    with pytest.raises(SegforgeError, match="device 'npu' is not here"):
        require_device(Device(name="npu", kind="npu", precisions=[]))


def test_a_device_is_what_probe_wrote(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, H200)
    device = gpu(name="H200")
    with pytest.raises(SegforgeError, match=r"h200\.json is missing(.|\n)*stages/probe\.py"):
        require_probed(device, then="the command")
    probe(MachineConfig())
    assert require_probed(device, then="the command") == read_json(layout.machine("h200"), made_by="")
    card = Card(**{**asdict(H200), "memory": 96 * GIB})
    FakeNvml(monkeypatch, card)
    with pytest.raises(SegforgeError) as caught:
        require_probed(device, then="the command")
    for words in ("h200.json does not describe this machine", "memory_gib 141, here 96", "probe.py, then the command"):
        assert words in str(caught.value)


def test_differences_name_what_changed_theirs_first() -> None:
    ours: dict[str, Any] = {"same": 1, "deep": {"a": [1], "b": 2}, "new": None, "more": 3}
    theirs: dict[str, Any] = {"same": 1, "deep": {"a": [2], "b": 2}, "gone": 4}
    assert differences(ours, theirs) == ["deep.a [2], here [1]", "gone 4, here None", "more None, here 3"]
    assert differences(ours, ours) == []
    assert len(differences(ours, "no object")) == 1
