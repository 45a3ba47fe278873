"""Modulated deformable convolution (DCNv2, arXiv 1811.11168) that every runtime takes."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

TAPS = 9  # of a 3x3 kernel


class DeformableConv(nn.Module):
    """A 3x3 convolution of stride 1 whose nine samples are moved and weighted by another convolution.

    Training uses torchvision's operator. In eval mode the samples are taken by `grid_sample`, which
    exports to ONNX's GridSample; both give the same values.
    """

    def __init__(self, before: int, after: int, *, bias: bool) -> None:
        super().__init__()
        self.offset_mask = nn.Conv2d(before, 3 * TAPS, 3, padding=1)
        for value in self.offset_mask.parameters():
            nn.init.zeros_(value)
        self.weight = nn.Parameter(torch.empty(after, before, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = self.offset_mask(x)
        offset, mask = moved[:, : 2 * TAPS], moved[:, 2 * TAPS :].sigmoid()
        if self.training:
            return cast(torch.Tensor, deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask))
        return self._sampled(x, offset, mask)

    def _sampled(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device, dtype=x.dtype).reshape(1, -1, 1)
        columns = torch.arange(width, device=x.device, dtype=x.dtype).reshape(1, 1, -1)
        samples = []
        for tap in range(TAPS):  # offsets come as (row, column) of each tap
            row = rows + offset[:, 2 * tap] + (tap // 3 - 1)
            column = columns + offset[:, 2 * tap + 1] + (tap % 3 - 1)
            grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1)
            samples.append(functional.grid_sample(x, grid, align_corners=False) * mask[:, tap : tap + 1])
        # [after, before, 3, 3] -> taps outermost, as the samples are joined.
        weight = self.weight.flatten(2).permute(0, 2, 1).flatten(1)[..., None, None]
        return functional.conv2d(torch.cat(samples, 1), weight, self.bias)
