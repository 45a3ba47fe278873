"""Mean intersection over union, as mmsegmentation's `IoUMetric` defines it."""

from typing import ClassVar, Self

import numpy as np

from segforge.errors import SegforgeError
from segforge.passport import Array
from segforge.tasks.core.base import Labels
from segforge.tasks.core.confusion import Confusion

CHUNK = 1 << 20  # pixels counted at a time: what is in the making stays in the processor's cache


class MeanIoU(Confusion):
    """Intersections and unions summed over the data set, then divided per class, then averaged."""

    name: ClassVar[str] = "miou"

    @classmethod
    def of(cls, labels: Labels) -> Self:
        return cls(labels.classes, labels.void, labels.void_rule)

    def update(self, predictions: Array, labels: Array) -> None:
        """Count a batch: class ids, integers [N, H, W] each.

        Raises `SegforgeError` for different shapes, and for a label that is neither a class nor void.
        """
        shapes = list(predictions.shape), list(labels.shape)
        if shapes[0] != shapes[1]:
            raise SegforgeError(f"predictions {shapes[0]} against labels {shapes[1]}", expected="one shape")
        # All 256 x 256 pairs, without a look at any; void and foreign ids are sorted out on the small table.
        first, second = _bytes(labels).reshape(-1), _bytes(predictions).reshape(-1)
        joint = np.zeros(1 << 16, np.int64)
        for start in range(0, first.size, CHUNK):
            pairs = first[start : start + CHUNK].astype(np.uint16)
            pairs <<= 8
            pairs |= second[start : start + CHUNK]
            joint += np.bincount(pairs, minlength=1 << 16)
        table = joint.reshape(256, 256)
        foreign = [i for i in np.flatnonzero(table.any(axis=1)) if i >= self.classes and i != self.void]
        if foreign:
            known = f"0 to {self.classes - 1}, or {self.void} for void"
            raise SegforgeError(f"labels hold the ids {', '.join(map(str, foreign))}", expected=known)
        rows = np.concatenate([table[: self.classes], table[self.void : self.void + 1]])
        if self.void < self.classes:
            rows[self.void] = 0
        self.add(np.column_stack([rows[:, : self.classes], rows[:, self.classes :].sum(axis=1)]))


def _bytes(ids: Array) -> Array:
    if ids.dtype == np.uint8:
        return ids
    return np.where((ids >= 0) & (ids < 256), ids, 255).astype(np.uint8)


METRIC = MeanIoU
