"""Scores in the field's own definitions, the ledger over conversions, and its gate."""

from collections.abc import Callable
from typing import Any, Protocol, Self

from segforge.errors import unknown_name
from segforge.runtimes.base import Array
from segforge.scores.miou import MeanIoU
from segforge.scores.topk import TopK


class Metric(Protocol):
    """A score over a data set, gathered batch by batch in exact integers: shards merge without error."""

    def update(self, predictions: Array, labels: Array) -> None:
        """Count one batch."""

    def merge(self, other: Self) -> None:
        """Add what `other` counted; the result is that of one metric that saw everything."""

    def result(self) -> dict[str, Any]:
        """`score` (0..1), `per_class` (0..1, None for a class that never occurs) and the metric's extras."""


registry: dict[str, Callable[[int, int], Metric]] = {"semantic": MeanIoU, "classification": TopK}


def metric_for(task: str, classes: int, void: int) -> Metric:
    """A fresh metric for `task`; raises `SegforgeError` naming the known tasks for an unknown one."""
    if task not in registry:
        raise unknown_name("task", task, registry)
    return registry[task](classes, void)
