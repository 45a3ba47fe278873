"""Images and labels as tensors: decoded once when they fit into memory, ahead of use otherwise."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image

from segforge.datasets.core.images import prefetch, read_image, resize_ids, resize_image
from segforge.datasets.core.index import Sample
from segforge.tasks.core.base import Task
from segforge.terminal import track

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


class SplitTensors:
    """The samples of a split: uint8 RGB images [N, 3, *size] and the training labels of their task.

    Those are uint8 ids [N, *size] (semantic), int32 instance maps of the same shape (panoptic, with the
    ids of the `things`) or int64 classes [N]. What fits into `memory_bytes` is decoded once, and lies on
    the device where that is CUDA with room for it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        task: Task,
        size: Size,
        device: torch.device,
        what: str,
        *,
        things: Sequence[int] = (),
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._samples, self._task, self._size = samples, task, size
        self._device, self._things = device, things
        self._decoded: Batch | None = None
        # An instance map has four bytes a pixel, an image three, class ids one.
        if 7 * size[0] * size[1] * len(samples) <= memory_bytes:
            with ThreadPoolExecutor() as pool:
                rows = track(pool.map(self._read, samples), f"{what}: decoding", total=len(samples), unit="images")
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
        chosen_samples = (self._samples[i] for chosen in order for i in chosen.tolist())
        rows = prefetch(chosen_samples, self._read, ahead=2 * len(order[0]))
        for chosen in order:
            yield self._to_device(*_stack(islice(rows, len(chosen))))

    def class_counts(self, classes: int) -> torch.Tensor:
        """Labelled pixels (or images) per class, int64 [classes] on the CPU."""
        counts = torch.zeros(256, dtype=torch.int64)
        for _, labels in self.batches(torch.split(torch.arange(len(self)), 16)):
            counts += torch.bincount(labels.flatten(), minlength=256).cpu()
        return counts[:classes]

    def _read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = resize_image(read_image(sample.image), *self._size).transpose(2, 0, 1)
        label = self._task.training_label(sample, self._things)
        return image, resize_ids(label, *self._size) if label.ndim else label

    def _to_device(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def _stack(rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Batch:
    images, labels = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
