"""Networks by name: one file per architecture, one line here."""

from collections.abc import Mapping
from typing import Any

import torch

from segforge.architectures import bisenet_coincheung, classifier, deeplabv3plus, mmseg, panopticfcn
from segforge.architectures.base import Architecture
from segforge.architectures.inference import wrap_for_inference
from segforge.architectures.weights import load_backbone_weights, load_network_weights, read_state_dict
from segforge.errors import SegforgeError, unknown_name

__all__ = [
    "Architecture",
    "build_network",
    "load_backbone_weights",
    "load_network_weights",
    "read_state_dict",
    "registry",
    "require_size",
    "wrap_for_inference",
]

registry: dict[str, Architecture] = {
    "bisenet_coincheung": bisenet_coincheung.ARCHITECTURE,
    "classifier": classifier.ARCHITECTURE,
    "deeplabv3plus": deeplabv3plus.ARCHITECTURE,
    "mmseg": mmseg.ARCHITECTURE,
    "panopticfcn": panopticfcn.ARCHITECTURE,
}


def build_network(model: str, backbone: str, *, classes: int, options: Mapping[str, Any]) -> torch.nn.Module:
    """A network with random weights: normalised float images [N, 3, H, W] in, logits out.

    Semantic logits [N, classes, h, w] are at the head's own low resolution, before the last
    upsampling; classification logits are [N, classes]. Raises `SegforgeError` for an unknown model,
    for a backbone that the model does not take, and for options that it does not have.
    """
    if model not in registry:
        raise unknown_name("model", model, registry)
    architecture = registry[model]
    if backbone not in architecture.backbones:
        raise unknown_name("backbone", backbone, architecture.backbones)
    try:
        return architecture.build(backbone, classes, **options)
    except TypeError as error:
        raise SegforgeError(f"{model} on {backbone} does not take these options: {error}") from error


def require_size(name: str, builder: str, height: int, width: int, what: str) -> None:
    """Raise `SegforgeError` unless model `name`, built by `builder`, takes images of this size; `what` sets it."""
    multiple = registry[builder].input_multiple
    if height % multiple or width % multiple:
        raise SegforgeError(
            f"{name} cannot take an image of {height}x{width}", expected=f"{what} with multiples of {multiple}"
        )
