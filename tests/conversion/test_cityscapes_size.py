"""At 1024x2048 either simplified graph of each mmsegmentation model gives the class ids that PyTorch gives."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import passport_at
from torch.nn import functional

from segforge.architectures.core.base import build_network
from segforge.architectures.core.inference import InferenceNetwork
from segforge.conversion.convert import convert
from segforge.graph.file import embed_passport, save_onnx
from segforge.graph.interface import require_interface
from segforge.graph.rewrites import SIMPLIFIERS, require_constant_pads, simplified
from segforge.passport import Passport
from segforge.runtimes.core.onnx import OnnxRunner

pytest.importorskip("mmseg", reason="the extra mmseg is not installed")

HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def passport(backbone: str, config: str) -> Passport:
    return passport_at(
        CLASSES,
        HEIGHT,
        WIDTH,
        variant=f"mmseg-{backbone}-cityscapes",
        model="mmseg",
        family="mmseg",
        backbone=backbone,
        options={"config": config},
        dataset="cityscapes",
        mean=MEAN,
        std=STD,
        batch_max=2,
    )


def scenes(count: int, height: int, width: int) -> torch.Tensor:
    """Soft patches of many sizes, as normalised images [count, 3, height, width]."""
    generator, images = torch.Generator().manual_seed(count), torch.zeros(count, 3, height, width)
    for cells in (4, 16, 64):
        patches = torch.randn(count, 3, cells, 2 * cells, generator=generator)
        images += functional.interpolate(patches, (height, width), mode="bicubic")
    return images


def enliven(network: torch.nn.Module) -> None:
    """Statistics of a real pass, and classes of equal mean and spread: untrained maps are nearly constant."""
    small, last = scenes(12, 96, 192), network.decode_head.conv_seg
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what passes
            torch.nn.init.ones_(module.weight)
    with torch.no_grad():
        network.train()(small)
        torch.nn.init.normal_(last.weight)
        logits = network.eval()(small)
        spread = logits.std((0, 2, 3))
        last.weight /= spread.reshape(-1, 1, 1, 1)
        last.bias.copy_((last.bias - logits.mean((0, 2, 3))) / spread)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "config"),
    [
        ("resnet50", "deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024"),
        ("resnet18", "bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024"),
        ("bisenetv2", "bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024"),
    ],
    ids=["deeplabv3", "bisenetv1", "bisenetv2"],
)
def test_same_ids_as_pytorch(tmp_path: Path, backbone: str, config: str) -> None:
    described, path = passport(backbone, config), tmp_path / "simplified.onnx"
    torch.manual_seed(0)
    network = build_network("mmseg", backbone, classes=CLASSES, options={"config": config})
    enliven(network)
    exported, images = convert(network, described), scenes(1, HEIGHT, WIDTH)
    with torch.inference_mode():
        expected = InferenceNetwork(network, described)(images).numpy()
    shares = np.bincount(expected.ravel(), minlength=CLASSES) / expected.size
    assert (shares > 0.01).sum() >= 5
    deployed = [p for name, p in network.named_parameters() if not name.startswith("auxiliary_head.")]
    for simplifier in SIMPLIFIERS:
        model = simplified(exported, simplifier)
        embed_passport(model, described)
        require_interface(model, described, path)
        require_constant_pads(model, path)
        operators = Counter(node.op_type for node in model.graph.node)
        assert not operators.keys() & {"Pad", "Shape", "Gather", "Slice", "Unsqueeze", "Range"}, simplifier
        assert operators["Cast"] == 1, simplifier  # of the ids to uint8
        held = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
        assert held <= sum(p.numel() for p in deployed) + 1000, simplifier  # no auxiliary head left
        save_onnx(model, path)
        with OnnxRunner(path) as runner:
            found = runner.run({"images": images.numpy()})["ids"].copy()
        assert found.shape == expected.shape == (1, HEIGHT, WIDTH)
        assert (found == expected).mean() >= 0.9999, simplifier
