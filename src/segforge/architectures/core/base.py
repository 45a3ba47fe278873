"""What the registry holds about one architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from segforge.architectures import architecture_of
from segforge.config.rules import must, one_of
from segforge.errors import SegforgeError

StateDict = Mapping[str, torch.Tensor]


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
    convert: Callable[[torch.nn.Module, StateDict], StateDict] = lambda _, weights: weights


def build_network(family: str, backbone: str, *, classes: int, options: Mapping[str, Any]) -> torch.nn.Module:
    """A network with random weights; what goes in and what comes out, `Architecture` says.

    Raises `SegforgeError` for an unknown family, for a backbone that it does not take, and for options
    that it does not have.
    """
    architecture = architecture_of(family)
    one_of(architecture.backbones, "backbone", backbone)
    try:
        return architecture.build(backbone, classes, **options)
    except TypeError as error:
        raise SegforgeError(f"{family} on {backbone} does not take these options: {error}") from error


def require_size(name: str, family: str, height: int, width: int, what: str) -> None:
    """Raise `SegforgeError` unless model `name`, of `family`, takes images of this size; `what` sets it."""
    multiple = architecture_of(family).input_multiple
    fits = height % multiple == 0 and width % multiple == 0
    must(fits, f"{name} cannot take an image of {height}x{width}", f"{what} with multiples of {multiple}")
