"""Image classifiers of torchvision: MobileNetV3 (arXiv 1905.02244)."""

from functools import partial

import torch

from segforge.architectures.core.base import Architecture


def build(backbone: str, classes: int, *, dropout: float = 0.2) -> torch.nn.Module:
    """The network with logits [N, classes] for images of any size from 32x32 on."""
    from torchvision import models

    # torchvision's momentum of 0.01 needs thousands of steps before the running statistics hold.
    norm = partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.1)
    network: torch.nn.Module = getattr(models, backbone)(num_classes=classes, dropout=dropout, norm_layer=norm)
    return network


ARCHITECTURE = Architecture(build, ("mobilenet_v3_small", "mobilenet_v3_large"), "features")
