"""Scores in the field's own definitions, and the ledger over conversions."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from segforge.errors import unknown_name
from segforge.scores.miou import MeanIoU
from segforge.scores.panoptic import PanopticQuality
from segforge.scores.topk import TopK


class Metric(Protocol):
    """A score over a data set, gathered batch by batch without rounding: shards merge without error."""

    def update(self, predictions: Any, labels: Any) -> None:
        """Count one batch, in the metric's own form."""

    def merge(self, other: Self) -> None:
        """Add what `other` counted; the result is that of one metric that saw everything."""

    def result(self) -> dict[str, Any]:
        """`score` (0..1), `per_class` (0..1, None for a class that never occurs) and the metric's extras."""


# task -> the metric of (classes, void, things, void_rule)
registry: dict[str, Callable[[int, int, Sequence[int], str], Metric]] = {
    "semantic": lambda classes, void, things, void_rule: MeanIoU(classes, void, void_rule),
    "panoptic": lambda classes, void, things, void_rule: PanopticQuality(classes, things),
    "classification": lambda classes, void, things, void_rule: TopK(classes),
}


def metric_for(task: str, classes: int, void: int, *, things: Sequence[int] = (), void_rule: str = "ignore") -> Metric:
    """A fresh metric for `task`; `things` are the counted classes (panoptic), `void_rule` is mIoU's (semantic).

    Raises `SegforgeError` naming the known tasks for an unknown one.
    """
    if task not in registry:
        raise unknown_name("task", task, registry)
    return registry[task](classes, void, things, void_rule)
