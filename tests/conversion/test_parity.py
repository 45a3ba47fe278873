"""Outputs that differ in anything that counts are refused: segments, NaN, scores."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from tiny_engine import CLASSES, HEIGHT, PASSPORT, WIDTH

from segforge.config.network import Inference
from segforge.conversion.parity import check_parity, require_score
from segforge.datasets.core.index import Sample
from segforge.errors import SegforgeError
from segforge.passport import Array, TensorSpec
from segforge.runtimes.core.base import Runner

LOGITS = replace(PASSPORT, tail="logits")
PANOPTIC = replace(PASSPORT, task="panoptic", things=[0], options={"inference": asdict(Inference(stuff_area=1))})


class Says:
    """A runner that gives the same outputs whatever it is shown."""

    inputs = (TensorSpec("images", "float32", (3, HEIGHT, WIDTH), 1, 4),)

    def __init__(self, outputs: dict[str, Array]) -> None:
        self._outputs = outputs

    def run(self, inputs: Any) -> dict[str, Array]:
        return self._outputs


def compare(folder: Path, passport: Any, reference: dict[str, Array], candidate: dict[str, Array]) -> float:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "image.png")
    samples = [Sample(folder / "image.png", "0" * 64, 0)]
    return check_parity(cast(Runner, Says(reference)), cast(Runner, Says(candidate)), passport, samples, [1], 0.0005)


def things(*boxes: tuple[slice, slice]) -> dict[str, Array]:
    """A panoptic output whose things are `boxes`, in their order, on one kind of stuff."""
    masks = np.zeros((1, 2, HEIGHT, WIDTH), np.float32)
    for mask, box in zip(masks[0], boxes, strict=False):
        mask[box] = 1
    scores = np.array([[0.9, 0.9]], np.float32) * (masks.max((2, 3)) > 0)
    stuff = np.ones((1, HEIGHT, WIDTH), np.uint8)
    return {"masks": masks, "scores": scores, "classes": np.zeros((1, 2), np.int64), "stuff_ids": stuff}


LEFT, RIGHT, BOTH = (np.s_[2:6, :4], np.s_[2:6, 4:8], np.s_[2:6, :8])


def test_things_may_come_in_another_order(tmp_path: Path) -> None:
    assert compare(tmp_path, PANOPTIC, things(LEFT, RIGHT), things(RIGHT, LEFT)) == 0


@pytest.mark.parametrize(("reference", "candidate"), [((LEFT, RIGHT), (BOTH,)), ((BOTH,), (LEFT, RIGHT))])
def test_two_things_of_a_class_are_not_one(tmp_path: Path, reference: Any, candidate: Any) -> None:
    with pytest.raises(SegforgeError, match="DIFFERS"):
        compare(tmp_path, PANOPTIC, things(*reference), things(*candidate))


@pytest.mark.parametrize(("ours", "theirs"), [(np.nan, 0), (0, np.nan), (np.nan, np.nan), (np.inf, np.inf)])
def test_logits_that_are_not_finite_are_never_accepted(tmp_path: Path, ours: float, theirs: float) -> None:
    reference = {"logits": np.ones((1, CLASSES, HEIGHT, WIDTH), np.float32)}
    candidate = {"logits": reference["logits"].copy()}
    assert compare(tmp_path, LOGITS, reference, candidate) == 0
    reference["logits"][0, :, 0, 0] += np.float32(ours)
    candidate["logits"][0, :, 0, 0] += np.float32(theirs)
    with pytest.raises(SegforgeError, match="DIFFERS"):
        compare(tmp_path, LOGITS, reference, candidate)


@pytest.mark.parametrize(("score", "checkpoint"), [(0.8, 0.801), (float("nan"), 0.8), (0.8, float("nan"))])
def test_a_score_leaves_the_checkpoints(score: float, checkpoint: float) -> None:
    with pytest.raises(SegforgeError, match="as the checkpoint"):
        require_score("the graph", score, checkpoint, 0.0005, hint="")
