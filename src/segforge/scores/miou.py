"""Mean intersection over union, as mmsegmentation's `IoUMetric` defines it."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segforge.errors import SegforgeError, unknown_name
from segforge.runtimes.base import Array

VOID_RULES = {
    "ignore": "pixels with label {void} are neither scored nor counted",
    "wrong": "a class predicted on pixels with label {void} counts as wrong (a false positive of that class)",
}
CHUNK = 1 << 20  # pixels counted at a time: what is in the making stays in the processor's cache


class MeanIoU:
    """Intersections and unions summed over the data set, then divided per class, then averaged.

    Follows mmsegmentation 1.x `IoUMetric.intersect_and_union`: the mean leaves out classes that are
    neither labelled nor predicted, and a prediction that is no class counts as wrong. `void_rule` says
    what becomes of pixels whose label is void: `ignore` (mmsegmentation, Cityscapes) leaves them out
    before anything is counted; `wrong` adds them to the union of the class that is predicted there.
    Raises `SegforgeError` for another rule and for more classes than 8 bits hold.
    """

    def __init__(self, classes: int, void: int, void_rule: str = "ignore") -> None:
        if not 1 <= classes <= 255:
            raise SegforgeError(f"{classes} classes", expected="1 to 255: class ids are stored in 8 bits")
        if void_rule not in VOID_RULES:
            raise unknown_name("void_rule", void_rule, VOID_RULES)
        self.classes, self.void, self.void_rule = classes, void, void_rule
        self.confusion = np.zeros((classes + 1, classes + 1), np.int64)  # label (last: void), prediction (last: none)

    def update(self, predictions: Array, labels: Array) -> None:
        """Count a batch: class ids, integers [N, H, W] each.

        Raises `SegforgeError` for different shapes, and for a label that is neither a class nor void.
        """
        if predictions.shape != labels.shape:
            raise SegforgeError(
                f"predictions {list(predictions.shape)} against labels {list(labels.shape)}", expected="one shape"
            )
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
            raise SegforgeError(
                f"labels hold the ids {', '.join(map(str, foreign))}",
                expected=f"0 to {self.classes - 1}, or {self.void} for void",
            )
        rows = np.concatenate([table[: self.classes], table[self.void : self.void + 1]])
        if self.void < self.classes:
            rows[self.void] = 0
        self.add(np.column_stack([rows[:, : self.classes], rows[:, self.classes :].sum(axis=1)]))

    def add(self, confusion: NDArray[np.int64]) -> None:
        """Count pixels by label (row; the last is void) and prediction (column; the last is no class)."""
        self.confusion += confusion

    def merge(self, other: Self) -> None:
        """Add the pixels that `other` counted."""
        if (self.classes, self.void, self.void_rule) != (other.classes, other.void, other.void_rule):
            raise SegforgeError(
                "two mIoU metrics of different classes, void id or void rule", expected="shards of one data set"
            )
        self.confusion += other.confusion

    def result(self) -> dict[str, Any]:
        """`score` (mIoU), `per_class` (IoU, None where union is 0), `pixel_accuracy`, `void` (the convention)."""
        counted = self.confusion[:-1]
        labelled = counted.sum(axis=1)
        if not labelled.any():
            raise SegforgeError("no pixel to score: every label is void", expected="labels with classes")
        right = np.diagonal(counted)
        predicted = (self.confusion if self.void_rule == "wrong" else counted)[:, :-1].sum(axis=0)
        union = labelled + predicted - right
        iou = [int(i) / int(u) if u else None for i, u in zip(right, union, strict=True)]
        return {
            "score": float(np.mean([value for value in iou if value is not None])),
            "per_class": iou,
            "pixel_accuracy": int(right.sum()) / int(labelled.sum()),
            "void": VOID_RULES[self.void_rule].format(void=self.void),
        }


def _bytes(ids: Array) -> Array:
    if ids.dtype == np.uint8:
        return ids
    return np.where((ids >= 0) & (ids < 256), ids, 255).astype(np.uint8)
