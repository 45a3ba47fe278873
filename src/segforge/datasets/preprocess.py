"""From a decoded image to what the network is fed, the same in training, scoring and timing."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array

Ids = TypeVar("Ids", np.uint8, np.int32)


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear, antialiased where it shrinks (Pillow's filter); unchanged when the size fits."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_ids(ids: NDArray[Ids], height: int, width: int) -> NDArray[Ids]:
    """Nearest, of uint8 or int32 ids: there is nothing between them."""
    if ids.shape == (height, width):
        return ids
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def network_input(images: Sequence[NDArray[np.uint8]], metadata: OnnxMetadata) -> Array:
    """A batch for the network from RGB images of any size.

    Returns float32 [batch, 3, height, width], normalised, for `nchw_float32`; uint8
    [batch, height, width, 3] for `nhwc_uint8`. Channels follow `metadata.colour_order`. Contiguous.
    """
    batch = np.stack([resize_image(image, metadata.height, metadata.width) for image in images])
    if metadata.colour_order == "bgr":
        batch = batch[..., ::-1]
    if metadata.input_layout == "nhwc_uint8":
        return np.ascontiguousarray(batch)
    scale = np.float32(1) / np.asarray(metadata.std, np.float32)
    shift = -np.asarray(metadata.mean, np.float32) * scale
    return np.ascontiguousarray((batch.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))
