"""What turns a trained network into the graph that is exported, scored and timed."""

from collections.abc import Sequence

import torch
from torch.nn import functional


class InferenceNetwork(torch.nn.Module):
    """A network between an optional normalisation and an optional argmax; see `wrap_for_inference`."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        network: torch.nn.Module,
        task: str,
        tail: str,
        output_size: tuple[int, int] | None,
        input_layout: str,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network, self.task, self.tail = network, task, tail
        self.output_size, self.input_layout = output_size, input_layout
        scale = 1 / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("scale", scale.reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "shift", (-torch.tensor(mean, dtype=torch.float32) * scale).reshape(1, 3, 1, 1), persistent=False
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if self.input_layout == "nhwc_uint8":
            images = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        if self.task == "panoptic":
            masks, scores, classes, stuff = self.network(images)
            return masks, scores, classes, self._resized(stuff).argmax(1).to(torch.uint8)
        logits: torch.Tensor = self.network(images)
        if self.task == "classification":
            return logits
        logits = self._resized(logits)
        return logits.argmax(1).to(torch.uint8) if self.tail == "argmax" else logits

    def _resized(self, logits: torch.Tensor) -> torch.Tensor:
        if self.output_size is None:
            return logits
        return functional.interpolate(logits, size=self.output_size, mode="bilinear", align_corners=False)


def wrap_for_inference(
    network: torch.nn.Module,
    task: str,
    tail: str,
    output_height: int,
    output_width: int,
    input_layout: str,
    mean: Sequence[float],
    std: Sequence[float],
    resize: str = "graph",
) -> torch.nn.Module:
    """The network as it is deployed, in eval mode.

    Input: float32 [N, 3, H, W], normalised by the host (`nchw_float32`), or uint8 [N, H, W, 3],
    normalised in the graph with `mean` and `std` of values in 0..255 (`nhwc_uint8`); channels come in
    the recipe's colour order either way. Output: semantic logits are resized once, bilinear, straight
    to [N, classes, output_height, output_width] float32 (`logits`), or to their uint8 class ids
    [N, output_height, output_width] (`argmax`); with `resize` "host" logits stay as small as the head
    gives them. Classification gives float32 logits [N, classes]; panoptic networks give what
    `panopticfcn` says, its stuff as uint8 ids [N, output_height, output_width].
    """
    size = (output_height, output_width) if resize == "graph" else None
    wrapped = InferenceNetwork(network, task, tail, size, input_layout, mean, std)
    return wrapped.eval()
