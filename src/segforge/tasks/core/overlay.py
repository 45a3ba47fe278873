"""Class ids laid over the image that they belong to."""

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.passport import Array, Passport


@dataclass(frozen=True)
class Picture:
    """One image beside its label and what was predicted: pictures, or the names of classes."""

    truth: Image.Image | str
    predicted: Image.Image | str
    right: float | None = None  # share of labelled pixels


def palette(colours: list[list[int]], classes: int) -> NDArray[np.uint8]:
    """RGB per id, uint8 [256, 3]: the data set's colours, else `classes` hues apart; black beyond."""
    table = np.zeros((256, 3), np.uint8)
    hues = colours or [[round(255 * v) for v in colorsys.hsv_to_rgb(i / classes, 0.7, 0.95)] for i in range(classes)]
    table[: len(hues)] = hues
    return table


def overlay(image: NDArray[np.uint8], ids: Array, regions: Array, passport: Passport) -> Image.Image:
    """`image` [H, W, 3] tinted by its class ids [H, W], with borders between different `regions` [H, W].

    Pixels of no class stay as they are.
    """
    classes = len(passport.classes)
    tint = palette(passport.colours, classes)[ids].astype(np.uint16)
    mixed = np.where((ids < classes)[..., None], (image * np.uint16(2) + tint * np.uint16(3)) // 5, image)
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border[1:] |= regions[1:] != regions[:-1]
    mixed[border] = 255
    return Image.fromarray(mixed.astype(np.uint8))


def jpeg(image: Image.Image, width: int | None = None) -> bytes:
    """`image` as JPEG, shrunk to at most `width` pixels."""
    if width and image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
