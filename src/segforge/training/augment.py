"""Augmentation of a whole batch at once, on its device: one affine warp, then colour."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from segforge.config import Augment, Input

Size = tuple[int, int]  # height, width
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def normalise(images: torch.Tensor, spec: Input) -> torch.Tensor:
    """RGB values 0..255 [N, 3, H, W] of any dtype as the network takes them: colour order, mean, std; float32."""
    ordered = images.flip(1) if spec.colour_order == "bgr" else images
    return (ordered.float() - _per_channel(spec.mean, images)) / _per_channel(spec.std, images)


def _per_channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    # Made on the CPU and copied without waiting: torch.tensor(..., device=...) stops the GPU's queue.
    return torch.tensor(values).reshape(1, 3, 1, 1).to(like.device, non_blocking=True)


def rgb_mean(spec: Input) -> list[float]:
    """The recipe's mean in RGB order: the colour outside an image."""
    return spec.mean[::-1] if spec.colour_order == "bgr" else spec.mean


def draw_affine(
    count: int, augment: Augment, size: Size, generator: torch.Generator, *, crop: Size | None = None
) -> torch.Tensor:
    """Matrices [count, 2, 3] from output to input, both in -1..1, for an output of `crop` or `size` pixels.

    Scale 1 without rotation is a resize of the image to `size`, from which `crop` is cut. A larger
    image is cropped at a uniform place; a smaller one lies wholly inside at a uniform place.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
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
    images: torch.Tensor,
    labels: torch.Tensor | None,
    affine: torch.Tensor,
    size: tuple[int, int],
    *,
    fill: list[float],
    void: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
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


def jitter(images: torch.Tensor, augment: Augment, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation of RGB float images 0..255, each by its own factor per image."""
    count = len(images)

    def factor(spread: float) -> torch.Tensor:
        drawn = 1 + spread * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
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
    images: torch.Tensor,
    labels: torch.Tensor,
    augment: Augment,
    spec: Input,
    void: int,
    generator: torch.Generator,
    crop: Size | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A training batch from RGB uint8 images [N, 3, H, W] and labels: ids [N, H, W] or classes [N].

    Returns normalised float32 [N, 3, height, width] of the recipe's input, or of the `crop` from it, and
    int64 labels.
    `generator` is on the CPU, so that a batch is the same on every device.
    """
    whole = spec.height, spec.width
    size = crop or whole
    affine = draw_affine(len(images), augment, whole, generator, crop=crop).to(images.device, non_blocking=True)
    ids = labels if labels.ndim == 3 else None
    warped, moved = warp(images, ids, affine, size, fill=rgb_mean(spec), void=void)
    network_images = normalise(jitter(warped, augment, generator), spec)
    return network_images, labels.long() if moved is None else moved
