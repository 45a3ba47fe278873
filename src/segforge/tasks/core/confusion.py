"""Intersections and unions over a data set, from how often each class was predicted where each was labelled."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segforge.errors import SegforgeError, unknown_name

VOID_RULES = {
    "ignore": "pixels with label {void} are neither scored nor counted",
    "wrong": "a class predicted on pixels with label {void} counts as wrong (a false positive of that class)",
}


class Confusion:
    """Pixels by label and prediction, and the mean intersection over union that follows from them.

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

    def add(self, confusion: NDArray[np.int64]) -> None:
        """Count pixels by label (row; the last is void) and prediction (column; the last is no class)."""
        self.confusion += confusion

    def merge(self, other: Self) -> None:
        if (self.classes, self.void, self.void_rule) != (other.classes, other.void, other.void_rule):
            differing = "two mIoU metrics of different classes, void id or void rule"
            raise SegforgeError(differing, expected="shards of one data set")
        self.add(other.confusion)

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
