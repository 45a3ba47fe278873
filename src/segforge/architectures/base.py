"""What the registry holds about one architecture."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Architecture:
    """A network family: how to build it, on which backbones, and where in it the backbone lies.

    `build(backbone, classes, **options)` returns the network with random weights. In training and in
    eval mode it maps normalised float images [N, 3, H, W] to logits: semantic [N, classes, h, w] at
    the head's own low resolution, classification [N, classes].
    """

    build: Callable[..., torch.nn.Module]
    backbones: tuple[str, ...]
    backbone_part: str  # attribute of the network; its parameters train with `backbone_lr_factor`
    input_multiple: int = 1  # of which an input's height and width must be
