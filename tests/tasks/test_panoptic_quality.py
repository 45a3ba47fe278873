"""Panoptic quality against its definition, pixel by pixel; its edges; its shards."""

import itertools
import random

import numpy as np
import pytest

from segforge.datasets.core.index import Segment
from segforge.datasets.core.panoptic import PanopticMap, semantic_of
from segforge.errors import SegforgeError
from segforge.tasks import task_of
from segforge.tasks.core.base import Labels
from segforge.tasks.panoptic.quality import PanopticQuality
from segforge.tasks.semantic.miou import MeanIoU

CLASSES, THINGS = 6, (2, 3, 5)
HUGE = 2**24 - 1


class Literal:
    """The definition in plain Python, over sets of pixels."""

    def __init__(self):
        self.tp, self.fp, self.fn, self.iou = ([0] * CLASSES for _ in range(4))

    def add(self, prediction, label):
        found, truth = ({} for _ in range(2))
        for ids, sets in ((prediction[0], found), (label[0], truth)):
            for y, row in enumerate(ids.tolist()):
                for x, value in enumerate(row):
                    sets.setdefault(value, set()).add((y, x))
        void = truth.get(0, set())
        matched_truth, matched_found = set(), set()
        for segment in label[1]:
            for number, kind in prediction[1].items():
                if kind != segment.category or segment.crowd:
                    continue
                both = truth[segment.id] & found[number]
                either = (truth[segment.id] | found[number]) - (void & found[number])
                if len(both) / len(either) > 0.5:
                    self.tp[kind] += 1
                    self.iou[kind] += len(both) / len(either)
                    matched_truth.add(segment.id)
                    matched_found.add(number)
        crowds = {}
        for segment in label[1]:
            if segment.crowd:
                crowds[segment.category] = truth[segment.id]
            elif segment.id not in matched_truth:
                self.fn[segment.category] += 1
        for number, kind in prediction[1].items():
            excused = len(found[number] & void) + len(found[number] & crowds.get(kind, set()))
            if number not in matched_found and excused / len(found[number]) <= 0.5:
                self.fp[kind] += 1

    def result(self):
        rows = []
        for tp, fp, fn, iou in zip(self.tp, self.fp, self.fn, self.iou, strict=True):
            weight = tp + 0.5 * fp + 0.5 * fn
            rows.append((iou / weight, iou / tp if tp else 0.0, tp / weight) if weight else None)
        groups = {"": range(CLASSES), "_things": THINGS, "_stuff": [c for c in range(CLASSES) if c not in THINGS]}
        result = {"per_class": [row and row[0] for row in rows]}
        for end, group in groups.items():
            counted = [rows[c] for c in group if rows[c]]
            for place, name in enumerate(("pq", "sq", "rq")):
                mean = sum(row[place] for row in counted) / len(counted) if counted else None
                result["score" if name + end == "pq" else name + end] = mean
        return result


def rectangles(rng, ids, count, shape=(12, 16)):
    """A map of up to `count` rectangles over void; small, large, hidden by one another."""
    drawn = np.zeros(shape, np.int32)
    for number in ids[:count]:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        drawn[y : y + rng.integers(1, 9), x : x + rng.integers(1, 12)] = number
    return drawn


def pair(seed):
    """A label with crowds, voids and gaps in its ids, and a prediction that is half right."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice([1, 2, 3, 7, 255, 256, 65536, 70000, HUGE - 1, HUGE], 10, replace=False).tolist()
    label = rectangles(rng, numbers, rng.integers(0, 9))
    segments = tuple(
        Segment(n, int(rng.integers(CLASSES)), bool(rng.random() < 0.2)) for n in numbers if (label == n).any()
    )
    moved = np.roll(label, (rng.integers(-1, 2), rng.integers(-1, 2)), (0, 1))
    extra = rectangles(rng, [11, 12, 500, HUGE - 7], rng.integers(0, 5))
    ids = np.where((extra > 0) & (rng.random() < 0.7), extra, moved)
    classes = {s.id: s.category if rng.random() < 0.8 else int(rng.integers(CLASSES)) for s in segments}
    classes |= {n: int(rng.integers(CLASSES)) for n in (11, 12, 500, HUGE - 7)}
    ids[ids == int(rng.choice(numbers))] = 0
    return (ids, {n: c for n, c in classes.items() if (ids == n).any()}), PanopticMap(label, segments)


PAIRS = [pair(seed) for seed in range(1000)]


def metric_of(pairs, things=THINGS):
    metric = PanopticQuality(CLASSES, things)
    metric.update(*zip(*pairs, strict=True))
    return metric


def test_equals_the_definition_on_1000_random_pairs():
    total, several = Literal(), 0
    for start in range(0, len(PAIRS), 4):
        literal = Literal()
        for one in PAIRS[start : start + 4]:
            literal.add(*one)
            total.add(*one)
            crowds = [s.category for s in one[1].segments if s.crowd]
            several += len(crowds) > len(set(crowds))
        metric = metric_of(PAIRS[start : start + 4])
        assert metric.counts.tolist() == [literal.tp, literal.fp, literal.fn]
        found, wanted = metric.result(), literal.result()
        assert found.keys() - {"miou"} == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, abs=1e-9), (start, name)
    assert min(total.tp + total.fp + total.fn) > 100 and several > 10, "the pairs try every rule"
    whole = metric_of(PAIRS).result()
    assert {name: whole[name] for name in total.result()} == {
        name: pytest.approx(value, abs=1e-9) for name, value in total.result().items()
    }


def test_miou_is_that_of_the_class_maps():
    metric = MeanIoU(CLASSES, 255)
    for prediction, label in PAIRS[:300]:
        metric.update(semantic_of(prediction), semantic_of(label))
    assert metric_of(PAIRS[:300]).result()["miou"] == metric.result()["score"]


def test_merged_shards_equal_the_whole_to_the_bit_in_any_order():
    whole = metric_of(PAIRS).result()
    for seed in range(5):
        mixed = random.Random(seed).sample(PAIRS, len(PAIRS))
        cuts = [0, *sorted(random.Random(seed).sample(range(1, len(PAIRS)), 6)), len(PAIRS)]
        shards = [metric_of(mixed[a:b]) for a, b in itertools.pairwise(cuts)]
        first = PanopticQuality(CLASSES, THINGS)
        for shard in shards:
            first.merge(shard)
        assert first.result() == whole


def image(rows, prediction=None, **segments):
    """Letters are segments, `.` is void: `image(["aab."], a=2, b=(3, "crowd"))`; one row may stand for both maps."""
    ids = np.array([[0 if c == "." else ord(c) for c in row] for row in rows], np.int32)
    listed = {ord(name): kind if isinstance(kind, tuple) else (kind, "") for name, kind in segments.items()}
    if prediction:
        return ids, {number: kind for number, (kind, _) in listed.items()}
    return PanopticMap(ids, tuple(Segment(number, kind, bool(crowd)) for number, (kind, crowd) in listed.items()))


def counts(found, label):
    metric = PanopticQuality(CLASSES, THINGS)
    metric.update([found], [label])
    return [line.sum() for line in metric.counts], metric


@pytest.mark.parametrize(
    ("found", "label", "expected"),
    [
        (image(["...."], True), image(["aab."], a=2, b=0), [0, 0, 2]),  # nothing is predicted
        (image(["aab."], True, a=2, b=0), image(["...."]), [0, 0, 0]),  # nothing is labelled: all lies on void
        (image(["...."], True), image(["...."]), [0, 0, 0]),
        (image(["a..b"], True, a=2, b=3), image(["x..x"], x=(2, "crowd")), [0, 1, 0]),  # a crowd only
        (image(["...."], True), image(["xxxx"], x=(2, "crowd")), [0, 0, 0]),
        (image(["a.bb"], True, a=2, b=2), image(["a.bb"], a=2, b=2), [2, 0, 0]),  # one pixel
        (image(["aaa."], True, a=2), image([".aaa"], a=2), [1, 0, 0]),  # 2 of 3: the first pixel lies on void
        (image(["aaab"], True, a=2, b=3), image(["baaa"], a=2, b=3), [0, 2, 2]),  # exactly 0.5 is no match
        (image(["aaaab"], True, a=2, b=3), image(["baaaa"], a=2, b=3), [1, 1, 1]),  # 0.6 is one
        (image(["aaab"], True, a=2, b=3), image(["aaab"], a=3, b=3), [1, 1, 1]),  # another class
        (image(["aabb"], True, a=2, b=3), image(["..bb"], b=3), [1, 0, 0]),  # on void alone
        (image(["aabb"], True, a=2, b=3), image([".cbb"], b=3, c=0), [1, 1, 1]),  # half on void counts
        (image(["aaab"], True, a=2, b=3), image(["..cb"], b=3, c=0), [1, 0, 1]),  # more than half does not
        (image(["aaab"], True, a=2, b=3), image([".xcb"], b=3, c=0, x=(2, "crowd")), [1, 0, 1]),  # void and crowd
        (image(["aaab"], True, a=2, b=3), image([".xcb"], b=3, c=0, x=(3, "crowd")), [1, 1, 1]),  # of another class
        (image(["aaab"], True, a=2, b=3), image(["xxyb"], b=3, x=(2, "crowd"), y=(2, "crowd")), [1, 1, 0]),  # the last
        (image(["aaab"], True, a=2, b=3), image(["xxyb"], b=3, y=(2, "crowd"), x=(2, "crowd")), [1, 0, 0]),
    ],
)
def test_edges(found, label, expected):
    counted, metric = counts(found, label)
    assert counted == expected
    literal = Literal()
    literal.add(found, label)
    assert metric.counts.tolist() == [literal.tp, literal.fp, literal.fn]


def test_ids_may_be_of_any_integer_type_and_anywhere():
    ids = np.array([[0, 1, HUGE], [HUGE, 1, 1]])
    for dtype in (np.int32, np.int64, np.uint32):
        counted, metric = counts(
            (ids.astype(dtype), {HUGE: 0, 1: 5}), PanopticMap(ids, (Segment(HUGE, 0, False), Segment(1, 5, False)))
        )
        assert counted == [2, 0, 0] and metric.result()["score"] == 1


def test_groups_without_a_class_are_none():
    _, metric = counts(image(["aabb"], True, a=2, b=3), image(["aabb"], a=2, b=3))
    result = metric.result()
    assert (result["pq_things"], result["pq_stuff"], result["sq_stuff"], result["rq_stuff"]) == (1, None, None, None)
    assert result["per_class"] == [None, None, 1, 1, None, None]
    stuff = task_of("panoptic").scores(Labels(CLASSES, 255))
    stuff.update([image(["aa"], True, a=2)], [image(["aa"], a=2)])
    assert (stuff.result()["pq_things"], stuff.result()["pq_stuff"]) == (None, 1)


def test_refuses_a_score_of_nothing():
    _, metric = counts(image(["aa"], True, a=2), image([".."]))
    with pytest.raises(SegforgeError, match="everything is void or crowd"):
        metric.result()
    assert counts(image(["ab"], True, a=2, b=3), image([".x"], x=(2, "crowd")))[1].result()["miou"] == 0


GOOD = image(["aab."], a=2, b=3)


@pytest.mark.parametrize(
    ("found", "label", "message"),
    [
        (
            image(["aab."], True, a=2),
            GOOD,
            r"prediction 1 of the batch: segments \[98\] are in the map, and not listed",
        ),
        (image(["aa.."], True, a=2, b=3), GOOD, r"prediction 1 of the batch: segments \[98\] are listed, and not in"),
        (image(["aa.."], True, a=2), image(["aab."], a=2), r"label 1 of the batch: segments \[98\] are in the map"),
        (image(["aa.."], True, a=2), image(["aa.."], a=2, b=3), r"label 1 of the batch: segments \[98\] are listed"),
        (image(["aa.."], True, a=CLASSES), GOOD, r"prediction 1 of the batch has the classes \[6\]\n.*0 to 5"),
        (image(["aa.."], True, a=2), image(["aa.."], a=-1), r"label 1 of the batch has the classes \[-1\]"),
        ((np.zeros((1, 4), np.int32), {0: 2}), GOOD, "prediction 1 of the batch lists segment 0"),
        (image(["...."], True), PanopticMap(GOOD.ids, GOOD.segments * 2), "one id twice"),
        ((np.full((1, 4), -1), {}), GOOD, r"segments \[-1\] are in the map"),
        (image(["aa."], True, a=2), GOOD, r"prediction 1 of the batch is \[1, 3\], its label \[1, 4\]"),
    ],
)
def test_refuses_what_does_not_fit_and_counts_nothing_of_it(found, label, message):
    metric = PanopticQuality(CLASSES, THINGS)
    good = image(["aab."], True, a=2, b=3)
    with pytest.raises(SegforgeError, match=message):
        metric.update([good, found], [GOOD, label])
    assert not metric.counts.any() and not any(metric.overlaps) and not metric.semantic.confusion.any()


def test_refuses_batches_things_and_shards_that_do_not_fit():
    with pytest.raises(SegforgeError, match="1 predictions against 0 labels"):
        PanopticQuality(CLASSES).update([image(["a"], True, a=1)], [])
    with pytest.raises(SegforgeError, match=r"things \[6\] are no classes"):
        PanopticQuality(CLASSES, [1, 6])
    with pytest.raises(SegforgeError, match="different classes or things"):
        PanopticQuality(CLASSES, [1]).merge(PanopticQuality(CLASSES, [2]))
