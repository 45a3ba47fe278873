"""Images and labels as tensors: decoded once when they fit into memory, ahead of use otherwise."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segforge.datasets.base import Sample, read_image, read_label_ids
from segforge.datasets.panoptic import instance_map
from segforge.datasets.preprocess import resize_ids, resize_image
from segforge.progress import track

MEMORY_BYTES = 8 << 30  # decoded images and labels that may lie in memory
DEVICE_SHARE = 0.3  # of the GPU's free memory that they may take

Size = tuple[int, int]  # height, width
Batch = tuple[torch.Tensor, torch.Tensor]


def common_size(samples: Sequence[Sample]) -> Size | None:
    """The (height, width) that all images share, from their headers; None when they differ."""

    def size(sample: Sample) -> Size:
        with Image.open(sample.image) as image:
            return image.height, image.width

    with ThreadPoolExecutor() as pool:
        sizes = set(pool.map(size, samples))
    return sizes.pop() if len(sizes) == 1 else None


class Images:
    """The samples of a split: uint8 RGB images [N, 3, *image_size] and their labels.

    Labels are uint8 ids [N, *label_size] (semantic), int32 instance maps of the same shape (panoptic,
    with the ids of the `things`) or int64 classes [N]. What fits into
    `memory_bytes` is decoded once, and lies on the device where that is CUDA with room for it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image_size: Size,
        label_size: Size,
        device: torch.device,
        what: str,
        *,
        things: Sequence[int] = (),
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._samples, self._image_size, self._label_size = samples, image_size, label_size
        self._device, self._things = device, things
        self._decoded: Batch | None = None
        # An instance map has four bytes a pixel, an image three, class ids one.
        per_image = 3 * image_size[0] * image_size[1] + 4 * label_size[0] * label_size[1]
        if per_image * len(samples) <= memory_bytes:
            with ThreadPoolExecutor() as pool:
                rows = list(
                    track(pool.map(self._read, samples), f"{what}: decoding", total=len(samples), unit="images")
                )
            images, labels = _stack(rows)
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            if images.nbytes + labels.nbytes < DEVICE_SHARE * free:
                images, labels = images.to(device), labels.to(device)
            self._decoded = images, labels

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, order: Sequence[torch.Tensor]) -> Iterator[Batch]:
        """Images and labels on the device for each tensor of indices in `order`."""
        if self._decoded is not None:
            images, labels = self._decoded
            for chosen in order:
                here = chosen.to(images.device, non_blocking=True)
                yield self._to_device(images[here], labels[here])
            return
        with ThreadPoolExecutor() as pool:
            ahead: list[list[Sample]] = [[self._samples[i] for i in chosen.tolist()] for chosen in order]
            waiting = [pool.map(self._read, batch) for batch in ahead[:2]]
            for number in range(len(ahead)):
                rows = list(waiting.pop(0))
                if number + 2 < len(ahead):
                    waiting.append(pool.map(self._read, ahead[number + 2]))
                yield self._to_device(*_stack(rows))

    def class_counts(self, classes: int) -> torch.Tensor:
        """Labelled pixels (or images) per class, int64 [classes] on the CPU."""
        counts = torch.zeros(256, dtype=torch.int64)
        order = torch.split(torch.arange(len(self)), 64)
        for _, labels in self.batches(order):
            counts += torch.bincount(labels.flatten(), minlength=256).cpu()
        return counts[:classes]

    def _read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = resize_image(read_image(sample.image), *self._image_size).transpose(2, 0, 1)
        if self._things:
            return image, resize_ids(instance_map(sample, self._things), *self._label_size)
        if isinstance(sample.label, Path):
            return image, resize_ids(read_label_ids(sample.label), *self._label_size)
        return image, np.asarray(sample.label, np.int64)

    def _to_device(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def _stack(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    images, labels = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
