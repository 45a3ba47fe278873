"""CoinCheung's BiSeNets: every published key finds its place, and the output is that of plain operations."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import passport_at
from torch.nn import functional as F

from segforge.architectures import architecture_of
from segforge.architectures.core.base import build_network
from segforge.architectures.core.weights import load_network_weights
from segforge.conversion.convert import convert
from segforge.errors import SegforgeError
from segforge.graph.file import embed_passport, save_onnx
from segforge.runtimes.core.onnx import OnnxRunner

CLASSES = 6
Weights = dict[str, torch.Tensor]


class Spec:
    """Random weights under the published names, made from a list of layers."""

    def __init__(self) -> None:
        self.weights: Weights = {}
        self._generator = torch.Generator().manual_seed(11)

    def conv(self, name: str, ins: int, outs: int, kernel: int, *, groups: int = 1, bias: bool = False) -> None:
        shape = (outs, ins // groups, kernel, kernel)
        fan = shape[1] * kernel * kernel
        self.weights[f"{name}.weight"] = torch.randn(shape, generator=self._generator) * (2 / fan) ** 0.5
        if bias:
            self.weights[f"{name}.bias"] = torch.randn(outs, generator=self._generator)

    def norm(self, name: str, channels: int) -> None:
        for field, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
            self.weights[f"{name}.{field}"] = torch.empty(channels).uniform_(low, high, generator=self._generator)
        self.weights[f"{name}.running_var"] = torch.empty(channels).uniform_(0.5, 2, generator=self._generator)
        self.weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def block(self, name: str, ins: int, outs: int, kernel: int = 3) -> None:
        self.conv(f"{name}.conv", ins, outs, kernel)
        self.norm(f"{name}.bn", outs)

    def depthwise(self, name: str, ins: int, outs: int) -> None:
        self.conv(f"{name}.0", ins, outs, 3, groups=ins)
        self.norm(f"{name}.1", outs)


def v1_weights() -> Weights:
    spec = Spec()
    spec.conv("cp.resnet.conv1", 3, 64, 7)
    spec.norm("cp.resnet.bn1", 64)
    for stage, (ins, outs) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
        for unit in (0, 1):
            name = f"cp.resnet.layer{stage}.{unit}"
            for layer, width in ((1, ins if unit == 0 else outs), (2, outs)):
                spec.conv(f"{name}.conv{layer}", width, outs, 3)
                spec.norm(f"{name}.bn{layer}", outs)
        if stage > 1:
            spec.conv(f"cp.resnet.layer{stage}.0.downsample.0", ins, outs, 1)
            spec.norm(f"cp.resnet.layer{stage}.0.downsample.1", outs)
    for name, ins in (("cp.arm16", 256), ("cp.arm32", 512)):
        spec.block(f"{name}.conv", ins, 128)
        spec.conv(f"{name}.conv_atten", 128, 128, 1)
        spec.norm(f"{name}.bn_atten", 128)
    spec.block("cp.conv_head32", 128, 128)
    spec.block("cp.conv_head16", 128, 128)
    spec.block("cp.conv_avg", 512, 128, 1)
    spec.block("sp.conv1", 3, 64, 7)
    spec.block("sp.conv2", 64, 64)
    spec.block("sp.conv3", 64, 64)
    spec.block("sp.conv_out", 64, 128, 1)
    spec.block("ffm.convblk", 256, 256, 1)
    spec.conv("ffm.conv", 256, 256, 1)
    spec.norm("ffm.bn", 256)
    for name, ins, middle in (("conv_out", 256, 256), ("conv_out16", 128, 64), ("conv_out32", 128, 64)):
        spec.block(f"{name}.conv", ins, middle)
        spec.conv(f"{name}.conv_out", middle, CLASSES, 1, bias=True)
    return spec.weights


def v2_weights() -> Weights:
    spec = Spec()
    for stage, widths in (("S1", [3, 64, 64]), ("S2", [64, 64, 64, 64]), ("S3", [64, 128, 128, 128])):
        for unit, (ins, outs) in enumerate(pairwise(widths)):
            spec.block(f"detail.{stage}.{unit}", ins, outs)
    stem = "segment.S1S2"
    spec.block(f"{stem}.conv", 3, 16)
    spec.block(f"{stem}.left.0", 16, 8, 1)
    spec.block(f"{stem}.left.1", 8, 16)
    spec.block(f"{stem}.fuse", 32, 16)
    for stage, ins, outs, units in (("S3", 16, 32, 2), ("S4", 32, 64, 2), ("S5_4", 64, 128, 4)):
        for unit in range(units):
            name, width = f"segment.{stage}.{unit}", ins if unit == 0 else outs
            spec.block(f"{name}.conv1", width, width)
            if unit == 0:
                spec.depthwise(f"{name}.dwconv1", width, 6 * width)
                spec.depthwise(f"{name}.dwconv2", 6 * width, 6 * width)
                spec.depthwise(f"{name}.shortcut", width, width)
                spec.conv(f"{name}.shortcut.2", width, outs, 1)
                spec.norm(f"{name}.shortcut.3", outs)
            else:
                spec.depthwise(f"{name}.dwconv", width, 6 * width)
            spec.conv(f"{name}.conv2.0", 6 * width, outs, 1)
            spec.norm(f"{name}.conv2.1", outs)
    spec.norm("segment.S5_5.bn", 128)
    spec.block("segment.S5_5.conv_gap", 128, 128, 1)
    spec.block("segment.S5_5.conv_last", 128, 128)
    for name in ("left1", "right2"):
        spec.depthwise(f"bga.{name}", 128, 128)
        spec.conv(f"bga.{name}.2", 128, 128, 1)
    for name in ("left2", "right1", "conv"):
        spec.conv(f"bga.{name}.0", 128, 128, 3)
        spec.norm(f"bga.{name}.1", 128)
    spec.block("head.conv", 128, 1024)
    spec.conv("head.conv_out.1", 1024, CLASSES, 1, bias=True)
    for name, ins, up in (("aux2", 16, 4), ("aux3", 32, 8), ("aux4", 64, 16), ("aux5_4", 128, 32)):
        spec.block(f"{name}.conv", ins, 128)
        spec.block(f"{name}.conv_out.0.1", 128, up * up)
        spec.conv(f"{name}.conv_out.1", up * up, CLASSES, 1, bias=True)
    return spec.weights


class Plain:
    """The published forward passes over a dictionary of weights, in inference."""

    def __init__(self, weights: Weights) -> None:
        self.w = weights

    def conv(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), stride, weight.shape[-1] // 2, 1,
                        x.shape[1] // weight.shape[1])  # fmt: skip

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (self.w[f"{name}.{f}"] for f in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def block(self, x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        return self.norm(self.conv(x, f"{name}.conv", stride), f"{name}.bn").relu()

    def pair(self, x: torch.Tensor, name: str, first: int = 0, stride: int = 1) -> torch.Tensor:
        return self.norm(self.conv(x, f"{name}.{first}", stride), f"{name}.{first + 1}")

    def v1(self, x: torch.Tensor) -> list[torch.Tensor]:
        deep = self.norm(self.conv(x, "cp.resnet.conv1", 2), "cp.resnet.bn1").relu()
        deep, maps = F.max_pool2d(deep, 3, 2, 1), []
        for stage in (1, 2, 3, 4):
            for unit in (0, 1):
                name, stride = f"cp.resnet.layer{stage}.{unit}", 2 if stage > 1 and unit == 0 else 1
                inner = self.norm(self.conv(deep, f"{name}.conv1", stride), f"{name}.bn1").relu()
                inner = self.norm(self.conv(inner, f"{name}.conv2"), f"{name}.bn2")
                shortcut = self.pair(deep, f"{name}.downsample", 0, 2) if stride == 2 else deep
                deep = (shortcut + inner).relu()
            maps.append(deep)
        _, _, at16, at32 = maps
        average = self.block(at32.mean((2, 3), keepdim=True), "cp.conv_avg")
        context32 = F.interpolate(self.attended(at32, "cp.arm32") + average, scale_factor=2, mode="nearest")
        context16 = self.block(context32, "cp.conv_head32")
        context = F.interpolate(self.attended(at16, "cp.arm16") + context16, scale_factor=2, mode="nearest")
        context8 = self.block(context, "cp.conv_head16")
        spatial = self.block(self.block(self.block(x, "sp.conv1", 2), "sp.conv2", 2), "sp.conv3", 2)
        spatial = self.block(spatial, "sp.conv_out")
        fused = self.block(torch.cat([spatial, context8], 1), "ffm.convblk")
        weight = self.norm(self.conv(fused.mean((2, 3), keepdim=True), "ffm.conv"), "ffm.bn").sigmoid()
        fused = fused * weight + fused
        heads = (("conv_out", fused, 8), ("conv_out16", context8, 8), ("conv_out32", context16, 16))
        return [
            upsampled(self.conv(self.block(maps, f"{name}.conv"), f"{name}.conv_out"), factor)
            for name, maps, factor in heads
        ]

    def attended(self, x: torch.Tensor, name: str) -> torch.Tensor:
        maps = self.block(x, f"{name}.conv")
        weight = self.norm(self.conv(maps.mean((2, 3), keepdim=True), f"{name}.conv_atten"), f"{name}.bn_atten")
        return maps * weight.sigmoid()

    def v2(self, x: torch.Tensor) -> list[torch.Tensor]:
        detail = x
        for stage, units in (("S1", 2), ("S2", 3), ("S3", 3)):
            for unit in range(units):
                detail = self.block(detail, f"detail.{stage}.{unit}", 2 if unit == 0 else 1)
        stem = self.block(x, "segment.S1S2.conv", 2)
        left = self.block(self.block(stem, "segment.S1S2.left.0"), "segment.S1S2.left.1", 2)
        deep = self.block(torch.cat([left, F.max_pool2d(stem, 3, 2, 1)], 1), "segment.S1S2.fuse")
        stages = [deep]
        for stage, units in (("S3", 2), ("S4", 2), ("S5_4", 4)):
            for unit in range(units):
                name = f"segment.{stage}.{unit}"
                inner = self.block(deep, f"{name}.conv1")
                if unit == 0:
                    inner = self.pair(self.pair(inner, f"{name}.dwconv1", 0, 2), f"{name}.dwconv2").relu()
                    shortcut = self.pair(self.pair(deep, f"{name}.shortcut", 0, 2), f"{name}.shortcut", 2)
                else:
                    inner, shortcut = self.pair(inner, f"{name}.dwconv").relu(), deep
                deep = (self.pair(inner, f"{name}.conv2") + shortcut).relu()
            stages.append(deep)
        mean = self.norm(deep.mean((2, 3), keepdim=True), "segment.S5_5.bn")
        semantic = self.block(self.block(mean, "segment.S5_5.conv_gap") + deep, "segment.S5_5.conv_last")
        left1 = self.conv(self.pair(detail, "bga.left1"), "bga.left1.2")
        left2 = F.avg_pool2d(self.pair(detail, "bga.left2", 0, 2), 3, 2, 1)
        right1 = F.interpolate(self.pair(semantic, "bga.right1"), scale_factor=4, mode="nearest")
        right2 = self.conv(self.pair(semantic, "bga.right2"), "bga.right2.2")
        guided = F.interpolate(left2 * right2.sigmoid(), scale_factor=4, mode="nearest")
        fused = self.pair(left1 * right1.sigmoid() + guided, "bga.conv").relu()
        outputs = [upsampled(self.conv(self.block(fused, "head.conv"), "head.conv_out.1"), 8)]
        for name, maps, factor in zip(("aux2", "aux3", "aux4", "aux5_4"), stages, (2, 4, 8, 16), strict=True):
            twice = F.interpolate(self.block(maps, f"{name}.conv"), scale_factor=2, mode="nearest")
            refined = self.block(twice, f"{name}.conv_out.0.1")
            outputs.append(upsampled(self.conv(refined, f"{name}.conv_out.1"), factor))
        return outputs


def upsampled(logits: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)


CASES = [("resnet18", v1_weights, Plain.v1), ("bisenetv2", v2_weights, Plain.v2)]
Forward = Callable[[Plain, torch.Tensor], list[torch.Tensor]]


@pytest.mark.parametrize(("backbone", "published", "forward"), CASES, ids=["v1", "v2"])
def test_published_weights_give_the_published_outputs(
    backbone: str, published: Callable[[], Weights], forward: Forward
) -> None:
    weights, architecture = published(), architecture_of("bisenet_coincheung")
    network = build_network("bisenet_coincheung", backbone, classes=CLASSES, options={}).eval()
    assert set(architecture.convert(network, weights)) == set(network.state_dict())
    assert load_network_weights(network, architecture, weights, CLASSES) == []
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = forward(Plain(weights), images)
        alone = network(images)
        network.training = True  # the heads of training, on the statistics of inference
        outputs = network(images)
    assert torch.equal(alone, outputs[0])
    assert alone.shape == (2, CLASSES, 12, 16)
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        resized = F.interpolate(output, wanted.shape[-2:], mode="bilinear", align_corners=False)
        assert wanted.std() > 0.1
        torch.testing.assert_close(resized, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(("backbone", "published", "forward"), CASES, ids=["v1", "v2"])
def test_weights_without_the_auxiliary_heads_do(
    backbone: str, published: Callable[[], Weights], forward: Forward, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {k: v for k, v in published().items() if not k.startswith(("aux", "conv_out16", "conv_out32"))}
    network = build_network("bisenet_coincheung", backbone, classes=CLASSES, options={}).eval()
    left = load_network_weights(network, architecture_of("bisenet_coincheung"), weights, CLASSES)
    assert left
    assert all(key.startswith("auxiliary_head.") for key in left)
    said = capsys.readouterr()
    assert "auxiliary heads" in said.out + said.err
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            upsampled(network(images), 8), forward(Plain(published()), images)[0], rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize(("backbone", "published", "forward"), CASES, ids=["v1", "v2"])
def test_onnx_runtime_gives_pytorchs_class_ids(
    backbone: str, published: Callable[[], Weights], forward: Forward, tmp_path: Path
) -> None:
    height, width, name = 64, 96, "bisenet_coincheung"
    described = passport_at(CLASSES, height, width, model=name, family=name, backbone=backbone)
    network = build_network(name, backbone, classes=CLASSES, options={})
    load_network_weights(network, architecture_of(name), published(), CLASSES)
    model = convert(network, described)
    embed_passport(model, described)
    save_onnx(model, tmp_path / "model.onnx")
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = upsampled(network.eval()(images), 8).argmax(1).numpy()
    with OnnxRunner(tmp_path / "model.onnx") as runner:
        found = runner.run({"images": images.numpy()})["ids"]
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= 0.999


def test_one_version_does_not_take_the_others_weights() -> None:
    network = build_network("bisenet_coincheung", "bisenetv2", classes=CLASSES, options={})
    with pytest.raises(SegforgeError, match="do not fit"):
        load_network_weights(network, architecture_of("bisenet_coincheung"), v1_weights(), CLASSES)


def test_in_training_every_parameter_learns() -> None:
    for backbone, heads in (("resnet18", 3), ("bisenetv2", 5)):
        network = build_network("bisenet_coincheung", backbone, classes=CLASSES, options={})
        outputs = network(torch.randn(2, 3, 64, 64))
        assert len(outputs) == heads
        sum(output.square().mean() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
