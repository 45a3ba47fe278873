"""BiSeNet V1 (arXiv 1808.00897) and V2 (2004.02147) as CoinCheung/BiSeNet (MIT) trains and publishes them.

They differ from mmsegmentation's: no ReLU before V1's last sigmoid, nearest instead of bilinear
enlargement in V2's aggregation, other auxiliary heads. Names inside the parts are those of the
published weights; `convert` puts the parts in their places.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from segforge.architectures.core.base import Architecture, StateDict
from segforge.architectures.core.weights import is_coincheung

# The first name of a published key, of V1 or V2, and ours.
KEYS = {part: f"backbone.{part}" for part in ("cp", "sp", "detail", "segment", "bga")}
KEYS |= {"ffm": "decode_head.ffm", "conv_out": "decode_head.conv_out", "head": "decode_head"}
KEYS |= {"conv_out16": "auxiliary_head.0", "conv_out32": "auxiliary_head.1"}
KEYS |= {f"aux{stage}": f"auxiliary_head.{i}" for i, stage in enumerate(("2", "3", "4", "5_4"))}

Maps = Sequence[torch.Tensor | tuple[torch.Tensor, torch.Tensor]]


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _normed(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs))


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return _named(conv=_conv(inputs, outputs, kernel, stride), bn=nn.BatchNorm2d(outputs), relu=nn.ReLU())


def _mean(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean((2, 3), keepdim=True)


def _enlarged(maps: torch.Tensor, factor: int) -> torch.Tensor:
    return functional.interpolate(maps, scale_factor=factor, mode="nearest")


class Attention(nn.Module):
    """V1's attention refinement: a 3x3 block, weighted per channel by its own mean."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = _block(inputs, 128)
        self.conv_atten = _conv(128, 128, 1)
        self.bn_atten = nn.BatchNorm2d(128)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.conv(maps)
        weights: torch.Tensor = self.bn_atten(self.conv_atten(_mean(maps)))
        return maps * weights.sigmoid()


class ContextPath(nn.Module):
    """V1's ResNet-18 with attention: maps of 128 channels at strides 8 and 16."""

    def __init__(self) -> None:
        from torchvision.models import resnet18

        super().__init__()
        self.resnet = resnet18(weights=None)
        del self.resnet.fc
        self.arm16, self.arm32 = Attention(256), Attention(512)
        self.conv_head32, self.conv_head16 = _block(128, 128), _block(128, 128)
        self.conv_avg = _block(512, 128, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        net = self.resnet
        stride8 = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images))))))
        stride16 = net.layer3(stride8)
        stride32 = net.layer4(stride16)
        context = self.arm32(stride32) + self.conv_avg(_mean(stride32))
        fine = self.conv_head32(_enlarged(context, 2))
        finer = self.conv_head16(_enlarged(self.arm16(stride16) + fine, 2))
        return finer, fine


class BackboneV1(nn.Module):
    """The two paths; gives ((spatial, context), context) at stride 8 and the context at stride 16."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = ContextPath()
        strided = {"conv1": _block(3, 64, 7, 2), "conv2": _block(64, 64, 3, 2), "conv3": _block(64, 64, 3, 2)}
        self.sp = _named(**strided, conv_out=_block(64, 128, 1))

    def forward(self, images: torch.Tensor) -> Maps:
        stride8, stride16 = self.cp(images)
        return (self.sp(images), stride8), stride8, stride16


class Fusion(nn.Module):
    """V1's feature fusion: both paths through a 1x1 block, then once more by its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _block(256, 256, 1)
        self.conv = _conv(256, 256, 1)
        self.bn = nn.BatchNorm2d(256)

    def forward(self, paths: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        maps: torch.Tensor = self.convblk(torch.cat(paths, 1))
        weights: torch.Tensor = self.bn(self.conv(_mean(maps)))
        return maps + maps * weights.sigmoid()


class Stem(nn.Module):
    """V2's stem: strided convolutions beside a pooling, to 16 channels at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _block(3, 16, 3, 2)
        self.left = nn.Sequential(_block(16, 8, 1), _block(8, 16, 3, 2))
        self.right = nn.MaxPool2d(3, 2, 1)
        self.fuse = _block(32, 16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        return cast(torch.Tensor, self.fuse(torch.cat([self.left(maps), self.right(maps)], 1)))


class GatherExpand(nn.Module):
    """V2's gather-and-expansion layer, with expansion 6; at stride 2 with a convolved shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        middle = 6 * inputs
        self.conv1 = _block(inputs, inputs)
        if stride == 1:
            self.dwconv = nn.Sequential(*_normed(inputs, middle, groups=inputs), nn.ReLU())
        else:
            self.dwconv1 = _normed(inputs, middle, stride=stride, groups=inputs)
            self.dwconv2 = nn.Sequential(*_normed(middle, middle, groups=middle), nn.ReLU())
            shrunk = _normed(inputs, inputs, stride=stride, groups=inputs)
            self.shortcut = nn.Sequential(*shrunk, *_normed(inputs, outputs, 1))
        self.conv2 = _normed(middle, outputs, 1)
        self.stride = stride

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        deep = self.conv1(maps)
        deep = self.dwconv(deep) if self.stride == 1 else self.dwconv2(self.dwconv1(deep))
        return functional.relu(self.conv2(deep) + (maps if self.stride == 1 else self.shortcut(maps)))


class ContextEmbedding(nn.Module):
    """V2's context embedding: the map's own mean is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(128)
        self.conv_gap = _block(128, 128, 1)
        self.conv_last = _block(128, 128)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.conv_last(self.conv_gap(self.bn(_mean(maps))) + maps))


class Aggregation(nn.Module):
    """V2's guided aggregation of the detail branch (stride 8) and the semantic branch (stride 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.left1 = nn.Sequential(*_normed(128, 128, groups=128), _conv(128, 128, 1))
        self.left2 = nn.Sequential(*_normed(128, 128, stride=2), nn.AvgPool2d(3, 2, 1))
        self.right1 = _normed(128, 128)
        self.right2 = nn.Sequential(*_normed(128, 128, groups=128), _conv(128, 128, 1))
        self.conv = nn.Sequential(*_normed(128, 128), nn.ReLU())

    def forward(self, detail: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        # The sigmoid commutes with nearest enlargement; it comes first as on fewer values.
        fine = self.left1(detail) * _enlarged(self.right1(semantic).sigmoid(), 4)
        coarse = self.left2(detail) * self.right2(semantic).sigmoid()
        return cast(torch.Tensor, self.conv(fine + _enlarged(coarse, 4)))


class BackboneV2(nn.Module):
    """Both branches and their aggregation; gives that map (stride 8), then those at strides 4, 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = _named(
            S1=nn.Sequential(_block(3, 64, stride=2), _block(64, 64)),
            S2=nn.Sequential(_block(64, 64, stride=2), _block(64, 64), _block(64, 64)),
            S3=nn.Sequential(_block(64, 128, stride=2), _block(128, 128), _block(128, 128)),
        )
        deep = [GatherExpand(64, 128, 2), *(GatherExpand(128, 128) for _ in range(3))]
        self.segment = _named(
            S1S2=Stem(),
            S3=nn.Sequential(GatherExpand(16, 32, 2), GatherExpand(32, 32)),
            S4=nn.Sequential(GatherExpand(32, 64, 2), GatherExpand(64, 64)),
            S5_4=nn.Sequential(*deep),
            S5_5=ContextEmbedding(),
        )
        self.bga = Aggregation()

    def forward(self, images: torch.Tensor) -> Maps:
        stages = [images]
        for stage in self.segment:
            stages.append(stage(stages[-1]))
        return self.bga(self.detail(images), stages[-1]), *stages[1:-1]


class BiSeNet(nn.Module):
    """A backbone and its heads; in training the auxiliary ones too."""

    def __init__(self, backbone: nn.Module, decode_head: nn.Module, auxiliary: Iterable[nn.Module]) -> None:
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = backbone, decode_head, nn.ModuleList(auxiliary)

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        first, *others = self.backbone(images)
        logits: torch.Tensor = self.decode_head(first)
        if not self.training:
            return logits
        return [logits, *(head(maps) for head, maps in zip(self.auxiliary_head, others, strict=True))]


def _head_v1(inputs: int, middle: int, classes: int) -> nn.Sequential:
    return _named(conv=_block(inputs, middle), conv_out=nn.Conv2d(middle, classes, 1))


def _head_v2(inputs: int, middle: int, classes: int, stride: int = 0) -> nn.Sequential:
    """V2's head; with the `stride` of its input the auxiliary form, which refines at twice the size."""
    width = stride**2 or middle
    refine = nn.Sequential(nn.Upsample(scale_factor=2), _block(middle, width)) if stride else nn.Identity()
    last = nn.Sequential(refine, nn.Conv2d(width, classes, 1))
    return _named(conv=_block(inputs, middle), drop=nn.Dropout(0.1), conv_out=last)


def build(backbone: str, classes: int) -> nn.Module:
    """V1 (backbone resnet18) or V2 (bisenetv2) with logits at stride 8, [N, classes, H/8, W/8].

    In training a list: those, then V1's at strides 8 and 16, V2's at strides 2, 4, 8 and 16. Random
    weights as the original draws them, ResNet-18 as torchvision does.
    """
    if backbone == "resnet18":
        head = _named(ffm=Fusion(), conv_out=_head_v1(256, 256, classes))
        network = BiSeNet(BackboneV1(), head, [_head_v1(128, 64, classes) for _ in range(2)])
        draw = partial(nn.init.kaiming_normal_, a=1)
    else:
        widths = {4: 16, 8: 32, 16: 64, 32: 128}  # by stride
        auxiliary = [_head_v2(width, 128, classes, stride) for stride, width in widths.items()]
        network = BiSeNet(BackboneV2(), _head_v2(128, 1024, classes), auxiliary)
        draw = partial(nn.init.kaiming_normal_, mode="fan_out")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and ".resnet." not in name:
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and name.endswith(".conv2.1"):
            nn.init.zeros_(module.weight)  # each layer of V2 starts as its shortcut
    return network


def convert(network: nn.Module, weights: StateDict) -> StateDict:
    """Published weights of V1 or V2 under this network's keys; others as they are."""
    if not is_coincheung(weights):
        return weights
    found = {}
    for key, value in weights.items():
        part, dot, rest = key.partition(".")
        found[KEYS.get(part, part) + dot + rest] = value
    return found


ARCHITECTURE = Architecture(build, ("resnet18", "bisenetv2"), "backbone", input_multiple=32, convert=convert)
