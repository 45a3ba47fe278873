"""Foreign weights: matched key by key, read without running code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torchvision import models

from segforge.architectures import build_network, load_backbone_weights, read_state_dict
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


class Payload:
    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._witness),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    file, witness = tmp_path / "weights.pth", tmp_path / "executed"
    content = {"features.0.0.weight": Payload(witness)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(SegforgeError, match="plain state dict"):
        read_state_dict(file)
    assert not witness.exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, {"model": {"a": torch.zeros(1)}}, [torch.zeros(1)]])
def test_what_is_no_plain_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(SegforgeError, match="plain state dict"):
        read_state_dict(tmp_path / "weights.pth")


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_rubbish_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(SegforgeError, match="plain state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_a_state_dict_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "weights.pth")
    assert torch.equal(read_state_dict(tmp_path / "weights.pth")["a"], torch.arange(3))
