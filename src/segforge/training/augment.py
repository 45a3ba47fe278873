"""Augmentation of a whole batch at once, on its device: one affine warp, then colour."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from segforge.config.recipe import Augment, Input

Size = tuple[int, int]  # height, width
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def normalise(images: Tensor, spec: Input) -> Tensor:
    """RGB values 0..255 [N, 3, H, W] of any dtype as the network takes them: colour order, mean, std; float32."""
    ordered = images.flip(1) if spec.colour_order == "bgr" else images
    return (ordered.float() - _per_channel(spec.mean, images)) / _per_channel(spec.std, images)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    # Made on the CPU and copied without waiting: torch.tensor(..., device=...) stops the GPU's queue.
    return torch.tensor(values).reshape(1, 3, 1, 1).to(like.device, non_blocking=True)


def draw_affine(count: int, augment: Augment, size: Size, generator: Generator, *, crop: Size | None = None) -> Tensor:
    """Matrices [count, 2, 3] from output to input, both in -1..1, for an output of `crop` or `size` pixels.

    Scale 1 without rotation is a resize of the image to `size`, from which `crop` is cut. A larger
    image is cropped at a uniform place; a smaller one lies wholly inside at a uniform place.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    height, width = size
    tall, wide = (crop[0] / height, crop[1] / width) if crop else (1.0, 1.0)  # the output, in images of scale 1
    zoom = 1 / uniform(augment.scale[0], augment.scale[1])
    angle = uniform(-augment.rotate_deg, augment.rotate_deg) * (math.pi / 180)
    flip = torch.where(uniform(0, 1) < (0.5 if augment.flip else 0.0), -1.0, 1.0)
    x, y = uniform(-1, 1) * (1 - zoom * wide).abs(), uniform(-1, 1) * (1 - zoom * tall).abs()
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Angles are in pixels, coordinates in halves of the sides: hence the ratio of the sides.
    row_x = torch.stack([cos * wide * flip, -sin * tall * (height / width), x], -1)
    row_y = torch.stack([sin * wide * (width / height) * flip, cos * tall, y], -1)
    return torch.stack([row_x, row_y], 1)


def warp(
    images: Tensor, labels: Tensor | None, affine: Tensor, size: Size, *, fill: list[float], void: int
) -> tuple[Tensor, Tensor | None]:
    """Sample images [N, 3, H, W] (bilinear) and label ids [N, H, W] (nearest) at the same places.

    Returns float32 [N, 3, *size] in the images' own range and int64 [N, *size]; outside an image lie
    the colour `fill` and `void`.
    """
    grid = functional.affine_grid(affine, [len(images), 3, *size], align_corners=False)
    colour = _per_channel(fill, images)
    warped = functional.grid_sample(images.float() - colour, grid, align_corners=False) + colour
    if labels is None:
        return warped, None
    # grid_sample pads with 0, so void becomes 0 for its while.
    moved = (labels.float() - void).unsqueeze(1)
    ids = functional.grid_sample(moved, grid, mode="nearest", align_corners=False).squeeze(1) + void
    return warped, ids.long()


def jitter(images: Tensor, augment: Augment, generator: Generator) -> Tensor:
    """Brightness, contrast and saturation of RGB float images 0..255, each by its own factor per image."""

    def factor(spread: float) -> Tensor:
        drawn = 1 + spread * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
        return drawn.to(images.device, non_blocking=True)

    grey = _per_channel(GREY, images)
    if augment.brightness:
        images = images * factor(augment.brightness)
    if augment.contrast:
        middle = (images * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        images = middle + (images - middle) * factor(augment.contrast)
    if augment.saturation:
        plain = (images * grey).sum(1, keepdim=True)
        images = plain + (images - plain) * factor(augment.saturation)
    return images.clamp(0, 255)


def augment_batch(
    images: Tensor,
    labels: Tensor,
    augment: Augment,
    spec: Input,
    void: int,
    generator: Generator,
    crop: Size | None = None,
) -> tuple[Tensor, Tensor]:
    """A training batch from RGB uint8 images [N, 3, H, W] and labels: ids [N, H, W] or classes [N].

    Returns normalised float32 [N, 3, height, width] of the recipe's input, or of the `crop` from it, and
    int64 labels. `generator` is on the CPU, so that a batch is the same on every device.
    """
    whole = spec.height, spec.width
    affine = draw_affine(len(images), augment, whole, generator, crop=crop).to(images.device, non_blocking=True)
    ids = labels if labels.ndim == 3 else None
    outside = spec.mean[::-1] if spec.colour_order == "bgr" else spec.mean  # a colour in RGB order
    warped, moved = warp(images, ids, affine, crop or whole, fill=outside, void=void)
    return normalise(jitter(warped, augment, generator), spec), labels.long() if moved is None else moved
