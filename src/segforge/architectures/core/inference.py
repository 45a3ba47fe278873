"""What turns a trained network into the graph that is exported, scored and timed."""

from typing import cast

import torch
from torch.nn import functional

from segforge.datasets.core.images import affine
from segforge.passport import Passport

Deployed = torch.Tensor | tuple[torch.Tensor, ...]


class InferenceNetwork(torch.nn.Module):
    """A network as it is deployed: between an optional normalisation and the end that its task asks for.

    Input: float32 [N, 3, H, W], normalised by the host (`nchw_float32`), or uint8 [N, H, W, 3],
    normalised in the graph by the passport's mean and std (`nhwc_uint8`); channels come in the recipe's
    colour order either way. Output: semantic logits are resized once, bilinear, straight to
    [N, classes, output_height, output_width] float32 (`logits`), or to their uint8 class ids
    [N, output_height, output_width] (`argmax`); with `resize` "host" logits stay as small as the head
    gives them. Classification gives float32 logits [N, classes]; panoptic networks give what
    `panopticfcn` says, its stuff as uint8 ids [N, output_height, output_width].
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: torch.nn.Module, passport: Passport) -> None:
        super().__init__()
        self.network, self.passport = network, passport
        for name, values in zip(("scale", "shift"), affine(passport.mean, passport.std), strict=True):
            self.register_buffer(name, torch.from_numpy(values).reshape(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: torch.Tensor) -> Deployed:
        if self.passport.input_layout == "nhwc_uint8":
            images = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        found: Deployed = self.network(images)
        if self.passport.task == "classification":
            return found
        if self.passport.task == "panoptic":
            masks, scores, classes, stuff = found
            return masks, scores, classes, self._resized(stuff).argmax(1).to(torch.uint8)
        logits = self._resized(cast(torch.Tensor, found))
        return logits.argmax(1).to(torch.uint8) if self.passport.tail == "argmax" else logits

    def _resized(self, logits: torch.Tensor) -> torch.Tensor:
        if self.passport.resize == "host":
            return logits
        size = self.passport.output_height, self.passport.output_width
        return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
