"""The contract of tasks: their metrics together, their predictions one by one, and where two of them differ."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_engine import PASSPORT
from torch.nn import functional

from segforge.config.rules import TASKS
from segforge.errors import SegforgeError
from segforge.passport import Array
from segforge.tasks import task_of
from segforge.tasks.core.base import Labels, Scores
from segforge.tasks.semantic.miou import MeanIoU

LABELS = Labels(classes=4, void=255)


class Wrong:
    """The share of pixels that are wrong: what a further metric of a task must have, and no more."""

    name: ClassVar[str] = "wrong"

    @classmethod
    def of(cls, labels: Labels) -> Self:
        return cls()

    def __init__(self) -> None:
        self.wrong = self.all = 0

    def update(self, predictions: Array, labels: Array) -> None:
        self.wrong += int((predictions != labels).sum())
        self.all += labels.size

    def merge(self, other: Self) -> None:
        self.wrong += other.wrong
        self.all += other.all

    def result(self) -> dict[str, Any]:
        return {"score": self.wrong / self.all, "per_class": []}


def scored(*pairs: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> Scores:
    scores = Scores([MeanIoU.of(LABELS), Wrong.of(LABELS)])
    for predictions, labels in pairs:
        scores.update(predictions, labels)
    return scores


def ids(*rows: list[int]) -> NDArray[np.uint8]:
    return np.array([rows], np.uint8)


FIRST = ids([0, 1, 1, 1]), ids([0, 1, 2, 2])
SECOND = ids([3, 3, 3, 3]), ids([3, 3, 3, 0])


def test_a_second_metric_appears_under_its_name_beside_the_first_one_s_result() -> None:
    alone = MeanIoU.of(LABELS)
    alone.update(*FIRST)
    assert scored(FIRST).result() == alone.result() | {"wrong": 0.5}


def test_merged_scores_are_those_of_one_that_saw_everything_in_both_metrics() -> None:
    left, right = scored(FIRST), scored(SECOND)
    left.merge(right)
    assert left.result() == scored(FIRST, SECOND).result() != scored(FIRST).result()
    assert left.result()["wrong"] == 3 / 8


def test_scores_of_other_metrics_are_not_merged() -> None:
    with pytest.raises(ValueError):
        scored(FIRST).merge(Scores([MeanIoU.of(LABELS)]))


def test_a_task_is_scored_by_all_its_metrics_and_gated_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of("semantic")
    monkeypatch.setitem(sys.modules, "segforge.tasks.semantic.wrong", SimpleNamespace(METRIC=Wrong))
    monkeypatch.setattr(type(task), "metrics", ("miou", "wrong"))
    assert task.metric == "miou"
    scores = task.scores(LABELS)
    scores.update(*FIRST)
    assert scores.result() == scored(FIRST).result()


def test_every_task_has_its_score() -> None:
    assert {name: task_of(name).metric for name in TASKS} == {
        "semantic": "miou",
        "panoptic": "pq",
        "classification": "top1",
    }
    with pytest.raises(SegforgeError, match=r"unknown task 'panopticc'(.|\n)*classification, panoptic, semantic"):
        task_of("panopticc")


def test_logits_enlarged_by_the_host_are_the_graph_s() -> None:
    logits = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    passport = replace(PASSPORT, tail="logits", resize="host", output_height=24, output_width=32)
    got = np.stack(list(task_of("semantic").predictions({"logits": logits.numpy()}, passport)))
    wanted = functional.interpolate(logits, size=(24, 32), mode="bilinear", align_corners=False).argmax(1)
    assert got.shape == (2, 24, 32)
    assert got.dtype == np.uint8
    assert (got == wanted.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("changes", "outputs", "wanted"),
    [
        ({}, {"ids": ids([0, 1], [3, 2])}, [[[0, 1], [3, 2]]]),
        ({"tail": "logits"}, {"logits": np.eye(4, dtype=np.float32).reshape(1, 4, 2, 2)}, [[[0, 1], [2, 3]]]),
        ({"task": "classification"}, {"logits": np.array([[0, 5, 1], [2, 0, 2]], np.float32)}, [1, 0]),
    ],
    ids=["ids", "logits", "classification"],
)
def test_decided_classes_stay_when_the_next_batch_overwrites_the_outputs(
    changes: dict[str, Any], outputs: dict[str, Array], wanted: list[Any]
) -> None:
    passport = replace(PASSPORT, **changes)
    task = task_of(passport.task)
    decided = [task.classes_of(prediction) for prediction in task.predictions(outputs, passport)]
    for array in outputs.values():
        array[:] = array[..., ::-1].copy()
    assert [one.tolist() for one in decided] == wanted


def panoptic(ids: list[int], **classes: int) -> tuple[NDArray[np.int32], dict[int, int]]:
    return np.array([ids], np.int32), {int(name.removeprefix("s")): kind for name, kind in classes.items()}


@pytest.mark.parametrize(
    ("found", "differing"),
    [
        (panoptic([1, 1, 1, 2, 2, 0, 0, 0], s1=2, s2=2), []),
        (panoptic([7, 7, 7, 5, 5, 0, 0, 0], s7=2, s5=2), []),  # numbers follow scores, which may tie
        (panoptic([1, 1, 1, 1, 1, 0, 0, 0], s1=2), [3, 4]),  # the smaller one went into the larger
        (panoptic([1, 1, 3, 2, 2, 0, 0, 0], s1=2, s2=2, s3=2), [2]),  # a part that split off
        (panoptic([1, 1, 2, 2, 2, 0, 0, 0], s1=2, s2=2), [2]),  # a pixel in another segment of the class
        (panoptic([1, 1, 1, 2, 2, 0, 0, 0], s1=2, s2=4), [3, 4]),  # the same segments, one in another class
        (panoptic([1, 1, 1, 2, 2, 2, 0, 0], s1=2, s2=2), [5]),  # where nothing was found
        (panoptic([1, 1, 1, 0, 0, 0, 0, 0], s1=2), [3, 4]),
    ],
)
def test_panoptic_predictions_differ_by_class_and_by_segment(found: Any, differing: list[int]) -> None:
    expected = panoptic([1, 1, 1, 2, 2, 0, 0, 0], s1=2, s2=2)
    task = task_of("panoptic")
    for pair in ((expected, found), (found, expected)):
        assert np.flatnonzero(task.differing(*pair)).tolist() == differing


def test_classifiers_differ_by_the_decided_class_alone() -> None:
    task = task_of("classification")
    logits = np.array([0.1, 0.9, 0.2], np.float32)
    assert not task.differing(logits, logits * 3)
    assert task.differing(logits, logits[::-1] - np.array([0, 2, 0]))
