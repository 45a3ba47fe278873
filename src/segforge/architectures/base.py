"""What the registry holds about one architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


def unconverted(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """`weights` as they are."""
    return weights


@dataclass(frozen=True)
class Architecture:
    """A network family: how to build it, on which backbones, and where in it the backbone lies.

    `build(backbone, classes, **options)` returns the network with random weights. It maps normalised
    float images [N, 3, H, W] to logits: semantic [N, classes, h, w] at the head's own low resolution,
    classification [N, classes]; panoptic networks are described in `panopticfcn`. In training mode a
    semantic network may return a list: the logits, then those of its auxiliary heads, which are gone
    in eval mode.
    """

    build: Callable[..., torch.nn.Module]
    backbones: tuple[str, ...]
    backbone_part: str  # attribute of the network; its parameters train with `backbone_lr_factor`
    input_multiple: int = 1  # of which an input's height and width must be
    # Other projects' state dicts of the same network, brought to this one's keys; others come back as they are.
    convert: Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = unconverted
