"""Mean intersection over union, as mmsegmentation's `IoUMetric` defines it."""

from typing import Any, Self

import numpy as np

from segforge.errors import SegforgeError
from segforge.runtimes.base import Array


class MeanIoU:
    """Intersections and unions summed over the data set, then divided per class, then averaged.

    Follows mmsegmentation 1.x `IoUMetric.intersect_and_union`: pixels whose label is void are left
    out before anything is counted; the mean leaves out classes that are neither labelled nor
    predicted. A prediction that is no class counts as wrong.
    """

    def __init__(self, classes: int, void: int) -> None:
        if not 1 <= classes <= 255:
            raise SegforgeError(f"{classes} classes", expected="1 to 255: class ids are stored in 8 bits")
        self.classes, self.void = classes, void
        self.confusion = np.zeros((classes, classes + 1), np.int64)  # label, prediction; last: no class

    def update(self, predictions: Array, labels: Array) -> None:
        """Count a batch: class ids, integers [N, H, W] each.

        Raises `SegforgeError` for different shapes, and for a label that is neither a class nor void.
        """
        if predictions.shape != labels.shape:
            raise SegforgeError(
                f"predictions {list(predictions.shape)} against labels {list(labels.shape)}", expected="one shape"
            )
        # All 256 x 256 pairs in one pass; void and foreign ids are sorted out on the small table.
        pairs = _bytes(labels).astype(np.uint16)
        pairs <<= 8
        pairs |= _bytes(predictions)
        joint = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        foreign = [i for i in np.flatnonzero(joint.any(axis=1)) if i >= self.classes and i != self.void]
        if foreign:
            raise SegforgeError(
                f"labels hold the ids {', '.join(map(str, foreign))}",
                expected=f"0 to {self.classes - 1}, or {self.void} for void",
            )
        rows = joint[: self.classes].copy()
        if self.void < self.classes:
            rows[self.void] = 0
        self.confusion[:, :-1] += rows[:, : self.classes]
        self.confusion[:, -1] += rows[:, self.classes :].sum(axis=1)

    def merge(self, other: Self) -> None:
        """Add the pixels that `other` counted."""
        if (self.classes, self.void) != (other.classes, other.void):
            raise SegforgeError("two mIoU metrics of different classes or void id", expected="shards of one data set")
        self.confusion += other.confusion

    def result(self) -> dict[str, Any]:
        """`score` (mIoU), `per_class` (IoU, None where union is 0), `pixel_accuracy`, `void` (the convention)."""
        labelled = self.confusion.sum(axis=1)
        if not labelled.any():
            raise SegforgeError("no pixel to score: every label is void", expected="labels with classes")
        right = np.diagonal(self.confusion)
        union = labelled + self.confusion[:, :-1].sum(axis=0) - right
        iou = [int(i) / int(u) if u else None for i, u in zip(right, union, strict=True)]
        return {
            "score": float(np.mean([value for value in iou if value is not None])),
            "per_class": iou,
            "pixel_accuracy": int(right.sum()) / int(labelled.sum()),
            "void": f"pixels with label {self.void} are neither scored nor counted",
        }


def _bytes(ids: Array) -> Array:
    if ids.dtype == np.uint8:
        return ids
    return np.where((ids >= 0) & (ids < 256), ids, 255).astype(np.uint8)
