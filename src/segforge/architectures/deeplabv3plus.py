"""DeepLabV3+ (arXiv 1802.02611), from segmentation_models_pytorch."""

import torch

from segforge.architectures.core.base import Architecture
from segforge.config.rules import must


def build(backbone: str, classes: int, *, output_stride: int = 16, dropout: float = 0.5) -> torch.nn.Module:
    """The network with logits at a quarter of the input's height and width, [N, classes, H/4, W/4].

    `output_stride` (8 or 16) is the encoder's; the atrous rates follow it as in the paper (6, 12, 18
    at 16; 12, 24, 36 at 8). Raises `SegforgeError` for another stride.
    """
    from segmentation_models_pytorch import DeepLabV3Plus

    must(output_stride in (8, 16), f"deeplabv3plus: output_stride={output_stride}", "8 or 16")
    network: torch.nn.Module = DeepLabV3Plus(
        encoder_name=backbone,
        encoder_weights=None,
        encoder_output_stride=output_stride,
        decoder_atrous_rates=tuple(rate * 16 // output_stride for rate in (6, 12, 18)),
        decoder_aspp_dropout=dropout,
        classes=classes,
        upsampling=1,
    )
    return network


ARCHITECTURE = Architecture(build, ("mobilenet_v2", "resnet50", "resnet101"), "encoder", input_multiple=16)
