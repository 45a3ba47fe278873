"""Foreign weights: matched key by key, read without running code."""

import collections
import datetime
import os
import pickle
import pickletools
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from segforge.architectures.core.base import Architecture, build_network
from segforge.architectures.core.weights import load_backbone_weights, load_network_weights, read_state_dict
from segforge.errors import SegforgeError


@pytest.mark.parametrize(
    ("model", "backbone", "part", "layer"),
    [
        ("deeplabv3plus", "mobilenet_v2", "encoder", "features.3.conv.0.0.weight"),
        ("deeplabv3plus", "resnet50", "encoder", "layer2.0.conv1.weight"),
        ("classifier", "mobilenet_v3_small", "features", "features.2.block.0.0.weight"),
    ],
)
def test_torchvision_weights_fill_the_backbone(model: str, backbone: str, part: str, layer: str) -> None:
    weights = getattr(models, backbone)(weights=None).state_dict()
    network = build_network(model, backbone, classes=3, options={})
    unused = load_backbone_weights(network, part, weights)
    own = network.state_dict()
    assert torch.equal(own[layer if layer in own else f"{part}.{layer}"], weights[layer])
    assert unused
    assert all(key.startswith(("classifier", "fc")) for key in unused)


def test_weights_of_another_backbone_are_refused_with_the_keys() -> None:
    network = build_network("deeplabv3plus", "mobilenet_v2", classes=3, options={})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(SegforgeError, match=r"encoder\.features\.0\.0\.weight"):
        load_backbone_weights(network, "encoder", models.resnet18(weights=None).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_one_missing_key_is_named() -> None:
    weights = models.mobilenet_v2(weights=None).state_dict()
    del weights["features.5.conv.1.0.weight"]
    network = build_network("deeplabv3plus", "mobilenet_v2", classes=3, options={})
    with pytest.raises(SegforgeError, match=r"features\.5\.conv\.1\.0\.weight"):
        load_backbone_weights(network, "encoder", weights)


class Called:
    """Pickles as a call of `function`, which loading the usual way would make."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._called = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._called


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.mkdir, ("{}",)),
        (os.system, ("touch '{}'",)),
        (subprocess.Popen, (["touch", "{}"],)),
        (eval, ("open('{}', 'w')",)),
        (exec, ("open('{}', 'w')",)),
    ],
    ids=["os", "system", "subprocess", "eval", "exec"],
)
def test_a_file_that_calls_python_is_refused_and_not_run(
    tmp_path: Path, zipped: bool, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    file, witness = tmp_path / "weights.pth", tmp_path / "executed"
    filled = [[w.format(witness) for w in a] if isinstance(a, list) else a.format(witness) for a in arguments]
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": Called(function, *filled)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SegforgeError, match="state dict") as caught:
        read_state_dict(file)
    assert "Python's own library" in str(caught.value)
    assert not witness.exists()


@FORMATS
def test_a_method_is_not_called_through_its_name(tmp_path: Path, zipped: bool) -> None:
    file, witness = tmp_path / "weights.pth", tmp_path / "executed"
    content = {"a": torch.zeros(1), "meta": Called(Path.touch, str(witness))}  # getattr(pathlib.Path, "touch")(...)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SegforgeError, match="state dict"):
        read_state_dict(file)
    assert not witness.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    file, witness = tmp_path / "weights.pth", tmp_path / "executed"
    file.write_bytes(pickle.dumps({"a": Called(os.mkdir, str(witness))}))
    with pytest.raises(SegforgeError, match="state dict"):
        read_state_dict(file)
    assert not witness.exists()


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("module", ["os", "posix"])
def test_a_legacy_file_that_names_a_function_is_refused_wherever_it_does(
    tmp_path: Path, module: str, place: int
) -> None:
    """Even where nothing calls it: in any of the five pickles at the head of a file from before the zip format."""
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(3)}, file, _use_new_zipfile_serialization=False)
    whole, ends = file.read_bytes(), [0]
    with file.open("rb") as head:
        for _ in range(5):
            assert list(pickletools.genops(head))
            ends.append(head.tell())
    assert torch.equal(read_state_dict(file)["a"], torch.arange(3))
    at = ends[place] + 2  # behind the protocol
    assert whole[ends[place] : at] == b"\x80\x02"
    file.write_bytes(whole[:at] + f"c{module}\nsystem\n0".encode() + whole[at:])
    with pytest.raises(SegforgeError, match=rf"it names {module}\.system of Python's own library"):
        read_state_dict(file)


RAN: list[str] = []


def run(what: str) -> None:
    RAN.append(what)


@FORMATS
def test_what_other_packages_put_beside_the_weights_is_left_alone(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "weights.pth"
    content = {
        "meta": {"seed": np.int64(3), "when": datetime.datetime(2020, 6, 5), "scores": np.arange(3.0)},
        "message_hub": collections.defaultdict(list, {"loss": [Called(run, "reduce")]}),
        "optimizer": {"state": {0: {"step": 3}}},
        "state_dict": collections.OrderedDict({"module.a": torch.arange(3), "module.b": torch.ones(2)}),
    }
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = read_state_dict(file)
    assert sorted(found) == ["a", "b"]
    assert torch.equal(found["a"], torch.arange(3))
    assert RAN == []


@FORMATS
def test_a_checkpoint_of_mmengine_is_read(tmp_path: Path, zipped: bool) -> None:
    logging = pytest.importorskip("mmengine.logging", reason="the extra mmseg is not installed")
    history = logging.HistoryBuffer()
    history.update(0.5)
    content = {"meta": {"iter": 1}, "message_hub": {"loss": history}, "state_dict": {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state_dict(tmp_path / "weights.pth")["a"], torch.ones(2))


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {"epoch": 3},
        {},
        [torch.zeros(1)],
        {"model": {"a": 1}},
        {"state_dict": {"a": np.zeros(2)}},
        {"state_dict": {}},
        {"weights": {"a": torch.zeros(1)}},
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(SegforgeError, match="state dict"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_rubbish_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(SegforgeError, match="state dict"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@FORMATS
def test_a_torn_file_is_refused_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(3)}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    for end in range(0, len(whole), 5):
        for data in (whole[:end], whole[:end] + b"\xff" + whole[end + 1 :]):
            file.write_bytes(data)
            with suppress(SegforgeError):  # a byte that nothing looks at may be anything
                read_state_dict(file)
        file.write_bytes(whole[:end])
        with pytest.raises(SegforgeError, match="state dict"):
            read_state_dict(file)


@pytest.mark.parametrize("content", [{"a": torch.arange(3)}, {"model": {"a": torch.arange(3)}, "epoch": 2}])
def test_a_state_dict_is_read(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert torch.equal(read_state_dict(tmp_path / "weights.pth")["a"], torch.arange(3))


class Small(nn.Module):
    """A network in the parts that the larger ones have."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.decode_head = nn.Conv2d(width, classes, 1)
        self.auxiliary_head = nn.Conv2d(width, classes, 1)


SMALL = Architecture(lambda backbone, classes: Small(classes), ("own",), "backbone")


def test_the_whole_network_is_filled_through_the_conversion() -> None:
    def renamed(network: nn.Module, weights: Any) -> dict[str, torch.Tensor]:
        return {key.removeprefix("their."): value for key, value in weights.items()}

    source, network = Small(), Small()
    theirs = {f"their.{key}": value for key, value in source.state_dict().items()}
    architecture = Architecture(SMALL.build, ("own",), "backbone", convert=renamed)
    assert load_network_weights(network, architecture, theirs, 3) == []
    own = network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in source.state_dict().items())


def test_only_auxiliary_heads_may_be_missing_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    network, weights = Small(), Small().state_dict()
    kept = {k: v for k, v in weights.items() if not k.startswith("auxiliary_head.") and "tracked" not in k}
    assert load_network_weights(network, SMALL, kept, 3) == ["auxiliary_head.weight", "auxiliary_head.bias"]
    assert "auxiliary heads" in capsys.readouterr().err
    with pytest.raises(SegforgeError, match=r"1 missing: decode_head \(1\)"):
        load_network_weights(network, SMALL, {k: v for k, v in kept.items() if k != "decode_head.bias"}, 3)


def test_another_class_count_is_named_with_the_remedy() -> None:
    network = Small(classes=11)
    with pytest.raises(SegforgeError, match=r"19 classes, the data set has 11(.|\n)*recipe\.weights\.holds=backbone"):
        load_network_weights(network, SMALL, Small(classes=19).state_dict(), 11)


def test_all_misfits_are_said_at_once_by_part_and_nothing_is_loaded() -> None:
    network, weights = Small(), dict(Small(width=6).state_dict())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weights["fc.weight"] = weights.pop("decode_head.weight")
    with pytest.raises(SegforgeError) as caught:
        load_network_weights(network, SMALL, weights, 3)
    said = str(caught.value)
    for part in ("1 missing: decode_head (1)", "1 left over: fc (1)", "of another shape: backbone.0 (2)", "backbone="):
        assert part in said
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
