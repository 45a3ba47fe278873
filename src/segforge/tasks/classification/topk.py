"""Top-1 and top-5 accuracy."""

from typing import Any, ClassVar, Self

import numpy as np

from segforge.errors import SegforgeError
from segforge.passport import Array
from segforge.tasks.core.base import Labels


class TopK:
    """The share of images whose label is the largest logit (top-1), or among the five largest (top-5).

    Of equal logits the lower class id ranks first, as argmax has it. An image with a NaN logit
    counts as wrong.
    """

    name: ClassVar[str] = "top1"

    @classmethod
    def of(cls, labels: Labels) -> Self:
        return cls(labels.classes)

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.ranks = np.zeros((classes, classes + 1), np.int64)  # label, rank of its logit; last: NaN

    def update(self, predictions: Array, labels: Array) -> None:
        """Count a batch: float logits [N, classes] and integer class ids [N].

        Raises `SegforgeError` for other shapes and for a label that is no class.
        """
        found, wanted = list(predictions.shape), [len(labels), self.classes]
        if found != wanted:
            raise SegforgeError(f"logits {found} against {len(labels)} labels", expected=str(wanted))
        foreign = ", ".join(str(one) for one in sorted(set(labels.tolist())) if not 0 <= one < self.classes)
        if foreign:
            raise SegforgeError(f"labels hold the ids {foreign}", expected=f"0 to {self.classes - 1}")
        own = np.take_along_axis(predictions, labels[:, None].astype(np.int64), axis=1)
        before = np.arange(self.classes) < labels[:, None]
        rank = ((predictions > own) | ((predictions == own) & before)).sum(axis=1)
        rank[np.isnan(predictions).any(axis=1)] = self.classes
        np.add.at(self.ranks, (labels, rank), 1)

    def merge(self, other: Self) -> None:
        if self.classes != other.classes:
            raise SegforgeError("two top-k metrics of different classes", expected="shards of one data set")
        self.ranks += other.ranks

    def result(self) -> dict[str, Any]:
        """`score` (top-1), `per_class` (top-1 of the class's images), and `top5` where classes exceed 5."""
        images = self.ranks.sum(axis=1)
        total, right = int(images.sum()), self.ranks[:, 0]
        if not total:
            raise SegforgeError("no image to score", expected="at least one")
        per_class = [int(r) / int(n) if n else None for r, n in zip(right, images, strict=True)]
        top5 = {"top5": int(self.ranks[:, :5].sum()) / total} if self.classes > 5 else {}
        return {"score": int(right.sum()) / total, "per_class": per_class} | top5


METRIC = TopK
