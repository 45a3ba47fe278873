"""PanopticFCN (arXiv 2012.00720): things and stuff as kernels that are convolved with one feature map.

In training mode the network maps normalised float images [N, 3, H, W] to `Predictions`. In eval mode
it gives, for fixed sizes of everything but the batch:

- masks [N, detections, H/4, W/4]: probabilities of things, best first;
- scores [N, detections]: position times mask, 0 where there is no such thing;
- classes [N, detections]: int64 class ids;
- stuff [N, 1 + stuff classes, H/4, W/4]: probabilities; channel 0 is "some thing", absent classes are 0.

What is left for the host, threshold and paste, is in `segforge.tasks.panoptic`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from segforge.architectures.core.base import Architecture
from segforge.architectures.core.deformable import DeformableConv
from segforge.architectures.core.detectron2_keys import from_detectron2
from segforge.config.network import Inference
from segforge.config.rules import must
from segforge.errors import unknown_name

SMOOTHING = (3, 3, 3, 5, 5)  # window of the average that position scores are mixed with, per level
NORMS: dict[str, Callable[[int], nn.Module]] = {"GN": partial(nn.GroupNorm, 32), "BN": nn.BatchNorm2d}


@dataclass(frozen=True)
class Predictions:
    """What the losses read, per level from stride 8 to 128, and the encoded features at stride 4."""

    centres: Sequence[torch.Tensor]  # logits [N, things, h, w]
    regions: Sequence[torch.Tensor]  # logits [N, 1 + stuff, h, w]
    kernels: Sequence[torch.Tensor]  # [N, channels, h, w]
    features: torch.Tensor  # [N, embedding, H/4, W/4]


def _conv(before: int, after: int, norm: str = "", *, deform: bool = False) -> nn.Sequential:
    """3x3 convolution, norm (with `norm` empty: a bias instead), ReLU."""
    if norm and norm not in NORMS:
        raise unknown_name("panopticfcn: norm", norm, NORMS)
    conv: Callable[..., nn.Module] = DeformableConv if deform else partial(nn.Conv2d, kernel_size=3, padding=1)
    return nn.Sequential(conv(before, after, bias=not norm), *([NORMS[norm](after)] if norm else []), nn.ReLU())


def _tower(before: int, after: int, convs: int, norm: str = "", *, deform: bool = False) -> nn.Sequential:
    return nn.Sequential(*(_conv(after if i else before, after, norm, deform=deform) for i in range(convs)))


def with_coordinates(features: torch.Tensor) -> torch.Tensor:
    """`features` [N, C, h, w] with two channels more: the row, then the column, each from -1 to 1."""
    batch, _, height, width = features.shape
    rows = torch.linspace(-1, 1, height, device=features.device, dtype=features.dtype)
    columns = torch.linspace(-1, 1, width, device=features.device, dtype=features.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return torch.cat([features, grid.expand(batch, 2, height, width)], 1)


class Trunk(nn.Module):
    """A ResNet of torchvision without its classifier; its keys, and the outputs at strides 4 to 32."""

    def __init__(self, name: str, *, stride_in_1x1: bool) -> None:
        super().__init__()
        from torchvision import models

        network = getattr(models, name)(weights=None)
        self.channels: list[int] = [network.fc.in_features // shrink for shrink in (8, 4, 2, 1)]
        for part, module in network.named_children():
            if part not in ("avgpool", "fc"):
                self.add_module(part, module)
        if stride_in_1x1:  # as in the first ResNets (arXiv 1512.03385), whose weights Detectron2 starts from
            for block in (b for b in self.modules() if hasattr(b, "conv3")):
                first, second = cast(nn.Conv2d, block.conv1), cast(nn.Conv2d, block.conv2)
                first.stride, second.stride = second.stride, first.stride

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        found, x = [], images
        for name, module in self.named_children():
            x = module(x)
            if name.startswith("layer"):
                found.append(x)
        return found


class FeaturePyramid(nn.Module):
    """Features of `channels` at strides 4 to 128 (arXiv 1612.03144), the last two from the one at 32.

    As torchvision's FeaturePyramidNetwork with LastLevelP6P7, which draws its first weights in another order.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(before, channels, 1) for before in inputs)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for layer in (*self.lateral, *self.output, self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + functional.interpolate(merged[i], scale_factor=2.0, mode="nearest")
        found = [output(x) for output, x in zip(self.output, merged, strict=True)]
        found.append(self.p6(found[-1]))
        found.append(self.p7(functional.relu(found[-1])))
        return found


class SemanticPyramid(nn.Module):
    """The features at strides 4 to 32 brought to stride 4 and added (arXiv 1901.02446)."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.ModuleList(_conv(channels, channels, norm) for _ in range(max(1, doublings))) for doublings in range(4)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return reduce(torch.add, (self._grown(x, doublings) for doublings, x in enumerate(features[:4])))

    def _grown(self, x: torch.Tensor, doublings: int) -> torch.Tensor:
        for conv in cast(nn.ModuleList, self.towers[doublings]):
            x = conv(x)
            if doublings:
                x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x


class Head(nn.Module):
    """A tower of convolutions and the maps that it ends in, `outs` of so many channels; shared by all levels."""

    def __init__(
        self, before: int, channels: int, convs: int, norm: str, outs: Mapping[str, int], bias: float, deform: bool
    ) -> None:
        super().__init__()
        self.tower = _tower(before, channels, convs, norm, deform=deform)
        layers = {name: nn.Conv2d(channels, width, 3, padding=1) for name, width in outs.items()}
        for name, layer in layers.items():
            self.add_module(name, layer)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(cast(torch.Tensor, layer.bias), bias)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        _, *layers = self.children()
        x = self.tower(x)
        return [layer(x) for layer in layers]


class PanopticFCN(nn.Module):
    """See the module's text. Starts with random weights; input height and width are multiples of 32.

    `things` are the ids of the classes that are counted, the others are stuff. `deform`: DCNv2 (arXiv
    1811.11168) in the position head. `inference` holds fields of `config.network.Inference`. Raises
    `SegforgeError` where one kind of class is missing.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        things: Sequence[int],
        channels: int = 256,
        embedding: int = 64,
        convs: int = 3,
        norm: str = "GN",
        deform: bool = False,
        stride_in_1x1: bool = False,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        problem = f"panopticfcn: {len(things)} of {classes} classes are things"
        must(0 < len(things) < classes, problem, "things and stuff, at least one each")
        self.things = list(things)
        self.stuff = [index for index in range(classes) if index not in things]
        self.inference = Inference(**(inference or {}))
        self.backbone = Trunk(backbone, stride_in_1x1=stride_in_1x1)
        self.fpn = FeaturePyramid(self.backbone.channels, channels)
        self.semantic_fpn = SemanticPyramid(channels, norm)
        # Where things have their centres and stuff its regions, with a probability of 0.1; and a kernel at each place.
        positions = {"out_inst": len(things), "out_sem": 1 + len(self.stuff)}
        self.position_head = Head(channels, channels, convs, norm, positions, bias=-2.19, deform=deform)
        self.kernel_head = Head(channels + 2, channels, convs, norm, {"out": channels}, bias=0.0, deform=False)
        self.feature_encoder = _tower(channels + 2, embedding, convs)
        self.thing_generator = nn.Conv2d(channels, embedding, 1)
        self.stuff_generator = nn.Conv2d(channels, embedding, 1)
        for layer in (self.thing_generator, self.stuff_generator):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast(torch.Tensor, layer.bias))

    def forward(self, images: torch.Tensor) -> "Predictions | tuple[torch.Tensor, ...]":
        pyramid = self.fpn(self.backbone(images))
        features = self.feature_encoder(with_coordinates(self.semantic_fpn(pyramid)))
        centres, regions = zip(*(self.position_head(x) for x in pyramid[1:]), strict=True)
        kernels = [self.kernel_head(with_coordinates(x))[0] for x in pyramid[1:]]
        predictions = Predictions(centres, regions, kernels, features)
        return predictions if self.training else self.decode(predictions)

    def decode(self, predictions: Predictions) -> tuple[torch.Tensor, ...]:
        """masks, scores, classes, stuff: as the module's text says. No operation's shape depends on values."""
        features = predictions.features
        batch, _, height, width = features.shape
        flat = features.flatten(2)
        kernels, scores, classes = self._fused_things(predictions)
        masks = torch.matmul(kernels, flat).sigmoid()
        inside = (masks > self.inference.mask_threshold).to(masks.dtype)
        scores = scores * (masks * inside).sum(2) / (inside.sum(2) + 1e-6)
        count = min(self.inference.detections, scores.shape[1])
        scores, order = scores.topk(count, dim=1)
        masks = torch.matmul(_take(kernels, order), flat).sigmoid().reshape(batch, count, height, width)
        stuff_kernels, present = self._fused_stuff(predictions)
        stuff = torch.matmul(stuff_kernels, flat).sigmoid() * present.unsqueeze(2)
        return masks, scores, classes.gather(1, order), stuff.reshape(batch, -1, height, width)

    def _fused_things(self, predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Kernels [N, K, embedding], position scores [N, K] (0: none) and class ids [N, K], alike ones fused."""
        found = []
        for centre, kernel, window in zip(predictions.centres, predictions.kernels, SMOOTHING, strict=True):
            score = centre.sigmoid()
            score = (score + functional.avg_pool2d(score, window, 1, window // 2)) / 2
            score = score * (functional.max_pool2d(score, 3, 1, 1) == score).to(score.dtype)
            places = score.shape[2] * score.shape[3]
            # The best of all classes together: no class can have more among them than asked for.
            best, index = score.flatten(1).topk(min(self.inference.candidates // 2, places), dim=1)
            # The 1x1 convolution comes before the choice: a convolution like any other for a quantiser.
            embedded = self.thing_generator(kernel).flatten(2).transpose(1, 2)
            found.append((best, index // places, _take(embedded, index % places)))
        scores, classes, kernels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        scores, order = scores.topk(scores.shape[1], dim=1)
        classes, kernels = classes.gather(1, order), _take(kernels, order)
        valid = scores > self.inference.thing_threshold
        unit = kernels / kernels.norm(dim=2, keepdim=True).clamp(min=1e-8)
        alike = torch.matmul(unit, unit.transpose(1, 2)) >= self.inference.similarity
        alike = alike & (classes.unsqueeze(2) == classes.unsqueeze(1)) & valid.unsqueeze(2) & valid.unsqueeze(1)
        later = torch.ones(alike.shape[1:], dtype=torch.bool, device=alike.device).triu()
        same = (alike & later).to(kernels.dtype)
        # Each belongs to the first that it is like; one that is like none before it leads a group.
        before = same.cumsum(1)
        leads = (before.diagonal(dim1=1, dim2=2) < 2) & valid
        groups = same * (before < 2).to(same.dtype) * leads.unsqueeze(2).to(same.dtype)
        fused = torch.matmul(groups, kernels) / groups.sum(2, keepdim=True).clamp(min=1)
        ids = torch.tensor(self.things, device=classes.device)
        return fused, scores * leads.to(scores.dtype), ids[classes]

    def _fused_stuff(self, predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
        """Kernels [N, 1 + stuff, embedding], averaged over the levels that have the class, and 1 where any has."""
        kernels: list[torch.Tensor] = []
        votes: list[torch.Tensor] = []
        weight, bias = self.stuff_generator.weight, cast(torch.Tensor, self.stuff_generator.bias)
        for region, kernel in zip(predictions.regions, predictions.kernels, strict=True):
            score = region.sigmoid()
            ids = torch.arange(score.shape[1], device=score.device).reshape(1, -1, 1, 1)
            chosen = (score.argmax(1, keepdim=True) == ids).to(score.dtype).flatten(2)
            count = chosen.sum(2)
            mean = (score.flatten(2) * chosen).sum(2) / count.clamp(min=1)
            votes.append((mean > self.inference.stuff_threshold).to(score.dtype))
            # The mean over the whole map, not over the class's own places: so it is trained.
            embedded = functional.conv2d(kernel, weight).flatten(2).transpose(1, 2)
            kernels.append(torch.matmul(chosen, embedded) / chosen.shape[2] + bias)
        total = torch.stack(votes).sum(0)
        fused = torch.stack([k * v.unsqueeze(2) for k, v in zip(kernels, votes, strict=True)]).sum(0)
        return fused / total.clamp(min=1).unsqueeze(2), (total > 0).to(fused.dtype)


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`rows` [N, P, C] at `index` [N, K]: [N, K, C]."""
    return rows.gather(1, index.unsqueeze(2).expand(-1, -1, rows.shape[2]))


ARCHITECTURE = Architecture(
    PanopticFCN, ("resnet18", "resnet50", "resnet101"), "backbone", 32, lambda _, weights: from_detectron2(weights)
)
