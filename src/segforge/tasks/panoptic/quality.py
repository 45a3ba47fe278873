"""Panoptic, segmentation and recognition quality (Kirillov et al., arXiv 1801.00868), as panopticapi counts them."""

import math
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from segforge.datasets.core.index import Segment
from segforge.datasets.core.panoptic import VOID, VOID_CLASS, PanopticMap, Prediction, index_in, runs
from segforge.errors import SHOWN, SegforgeError
from segforge.passport import Array
from segforge.tasks.core.base import Labels
from segforge.tasks.core.confusion import Confusion

Counts = NDArray[np.int64]


class PanopticQuality:
    """PQ = sum of IoU / (TP + FP/2 + FN/2) per class over the data set, then averaged over classes.

    The rules of panopticapi's `pq_compute`, which differ from the paper's where crowds come in: a
    predicted and a labelled segment match when they have one class, the label is no crowd, and IoU > 0.5,
    void pixels left out of the union. A labelled segment without a match is a false negative, unless it
    is a crowd. A predicted one is a false positive, unless more than half of it lies on void or on a
    crowd of its class (the last one listed, where there are several). Means leave out classes without
    TP, FP or FN. Areas are those of the maps. Sums of IoU are rounded once, whatever the order.

    `things` are the ids of the classes that are counted; the others are stuff. Raises `SegforgeError`
    for a thing that is no class.
    """

    name: ClassVar[str] = "pq"

    @classmethod
    def of(cls, labels: Labels) -> Self:
        return cls(labels.classes, labels.things)

    def __init__(self, classes: int, things: Collection[int] = ()) -> None:
        foreign = sorted(set(things) - set(range(classes)))
        if foreign:
            raise SegforgeError(f"things {foreign} are no classes", expected=f"0 to {classes - 1}")
        self.classes, self.things = classes, frozenset(things)
        self.semantic = Confusion(classes, VOID_CLASS)
        self.counts = np.zeros((3, classes), np.int64)  # TP, FP, FN
        self.overlaps: list[list[float]] = [[] for _ in range(classes)]  # IoU of each match

    def update(self, predictions: Sequence[Prediction], labels: Sequence[PanopticMap]) -> None:
        """Count a batch of (integer ids [H, W], {id: class}) against (integer ids [H, W], segments).

        Id 0 is void, or nothing found. Raises `SegforgeError` for different sizes, for classes that are
        none, and where a map's ids and the list of its segments differ; nothing of the batch counts then.
        """
        if len(predictions) != len(labels):
            raise SegforgeError(f"{len(predictions)} predictions against {len(labels)} labels", expected="as many")
        shard = type(self)(self.classes, self.things)
        for number, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
            shard._count(prediction, label, f" {number} of the batch")
        self.merge(shard)

    def _count(self, prediction: Prediction, label: PanopticMap, which: str) -> None:
        segments: Sequence[Segment] = label[1]
        if prediction[0].shape != label[0].shape or label[0].ndim != 2:
            sizes = [list(ids.shape) for ids in (prediction[0], label[0])]
            raise SegforgeError(f"prediction{which} is {sizes[0]}, its label {sizes[1]}", expected="one size [H, W]")
        first, lengths = runs(label[0], prediction[0])
        truth, kinds = self._numbered(label[0], first, [(s.id, s.category) for s in segments], "label" + which)
        found, decided = self._numbered(prediction[0], first, list(prediction[1].items()), "prediction" + which)
        # Pixels by labelled segment (row) and predicted one (column); row and column 0 are void.
        pixels = np.bincount(truth * len(decided) + found, weights=lengths, minlength=len(kinds) * len(decided))
        shared = pixels.astype(np.int64).reshape(len(kinds), len(decided))
        self._match(shared, kinds[1:], decided[1:], np.array([s.crowd for s in segments], np.bool_))
        confusion = np.zeros((self.classes + 1, self.classes + 1), np.int64)
        np.add.at(confusion, (kinds[:, None], decided[None, :]), shared)
        self.semantic.add(confusion)

    def _numbered(
        self, ids: Array, first: Counts, listed: Sequence[tuple[int, int]], what: str
    ) -> tuple[Counts, Counts]:
        """Which segment lies at each of `first` (0: void, then as listed), and the class of each (void: no class)."""
        known, kinds = [VOID, *(one for one, _ in listed)], [self.classes, *(kind for _, kind in listed)]
        foreign = sorted(set(kinds[1:]) - set(range(self.classes)))
        if foreign:
            raise SegforgeError(f"{what} has the classes {foreign[:SHOWN]}", expected=f"0 to {self.classes - 1}")
        if len(set(known)) < len(known):
            raise SegforgeError(f"{what} lists segment 0, or one id twice", expected="each id once, and 0 for void")
        at = ids.reshape(-1)[first]
        numbers = index_in(known, at)
        unknown = np.unique(at[numbers < 0]).tolist()
        seen = np.bincount(numbers.clip(min=0), minlength=len(known)).tolist()
        missing = [one for one, count in zip(known[1:], seen[1:], strict=True) if not count]
        for those, where in ((unknown, "in the map, and not listed"), (missing, "listed, and not in the map")):
            if those:
                raise SegforgeError(f"{what}: segments {those[:SHOWN]} are {where}", expected="each in both")
        return numbers, np.array(kinds, np.int64)

    def _match(self, shared: Counts, kinds: Counts, decided: Counts, crowd: NDArray[np.bool_]) -> None:
        areas, on_void, both = shared.sum(axis=0)[1:], shared[0, 1:], shared[1:, 1:]
        union = shared.sum(axis=1)[1:, None] + areas - both - on_void
        match = (kinds[:, None] == decided) & ~crowd[:, None] & (2 * both > union)
        rows, columns = np.nonzero(match)
        for kind, iou in zip(kinds[rows].tolist(), (both[rows, columns] / union[rows, columns]).tolist(), strict=True):
            self.overlaps[kind].append(iou)
        crowd_of = np.zeros(self.classes, np.int64)  # the row of each class's crowd; of several, the last stays
        crowd_of[kinds[crowd]] = np.flatnonzero(crowd) + 1
        row = crowd_of[decided]
        excused = on_void + np.where(row > 0, shared[row, 1 + np.arange(len(decided))], 0)
        wrong = ~match.any(axis=0) & (2 * excused <= areas)
        missed = ~match.any(axis=1) & ~crowd
        for count, those in zip(self.counts, (kinds[rows], decided[wrong], kinds[missed]), strict=True):
            count += np.bincount(those, minlength=self.classes)

    def merge(self, other: Self) -> None:
        if (self.classes, self.things) != (other.classes, other.things):
            raise SegforgeError("two metrics of different classes or things", expected="shards of one data set")
        self.counts += other.counts
        for own, more in zip(self.overlaps, other.overlaps, strict=True):
            own.extend(more)
        self.semantic.merge(other.semantic)

    def result(self) -> dict[str, Any]:
        """`score` (PQ), `sq` and `rq` of all classes, the three of things and of stuff, `per_class` (PQ), `miou`.

        `miou` is that of the class maps behind the panoptic ones, void labels left out. None stands for a
        class without TP, FP or FN, and for things, stuff or pixels of which there are none. Raises
        `SegforgeError` where no class has any.
        """
        table: dict[int, tuple[float, float, float]] = {}
        for kind, (true, false, missed) in enumerate(self.counts.T.tolist()):
            if true + false + missed:
                iou = math.fsum(self.overlaps[kind])  # rounds the exact sum, so that neither order nor shards show
                weight = true + false / 2 + missed / 2
                table[kind] = (iou / weight, iou / true if true else 0.0, true / weight)
        if not table:
            raise SegforgeError("no segment to score: everything is void or crowd", expected="labels with segments")
        result: dict[str, Any] = {}
        for suffix, group in (("", set(table)), ("_things", self.things), ("_stuff", set(table) - self.things)):
            rows = [row for kind, row in table.items() if kind in group]
            for place, name in enumerate(("pq" if suffix else "score", "sq", "rq")):
                result[name + suffix] = math.fsum(row[place] for row in rows) / len(rows) if rows else None
        result["per_class"] = [table[kind][0] if kind in table else None for kind in range(self.classes)]
        result["miou"] = self.semantic.result()["score"] if self.semantic.confusion[:-1].any() else None
        return result


METRIC = PanopticQuality
