"""What the host does after a panoptic engine, against a plain restatement."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from segforge.config.network import Inference
from segforge.tasks.panoptic.segments import panoptic_segments

RULES = Inference(mask_threshold=0.4, score_threshold=0.2, overlap=0.5, stuff_area=12)
THINGS, CLASSES = [1, 3], 5  # stuff: 0, 2, 4


def outputs(seed: int, size: tuple[int, int], count: int = 9) -> dict[str, NDArray[Any]]:
    """One image: smooth masks that overlap, sorted scores and a stuff map of coarse patches."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[: height // 4, : width // 4]
    masks = np.stack(
        [
            1
            / (
                1
                + np.exp(
                    ((y - random.integers(0, height // 4)) ** 2 + (x - random.integers(0, width // 4)) ** 2) / 4 - 3
                )
            )
            for _ in range(count)
        ]
    ).astype(np.float32)
    masks[-1] = 0.1
    scores = np.sort(random.random(count).astype(np.float32))[::-1].copy()
    scores[-1] = max(scores[-1], 0.3)
    coarse = random.integers(0, 4, (-(-height // 5), -(-width // 5)), dtype=np.uint8)
    stuff = np.kron(coarse, np.ones((5, 5), np.uint8))[:height, :width]
    return {
        "masks": masks[None],
        "scores": np.sort(scores)[::-1].copy()[None],
        "classes": random.choice(THINGS, count)[None],
        "stuff_ids": np.ascontiguousarray(stuff)[None],
    }


def plain(given: dict[str, NDArray[Any]], rules: Inference) -> tuple[NDArray[np.int32], dict[int, int]]:
    """The paper's combination with whole images at every step."""
    stuff = given["stuff_ids"][0]
    masks = functional.interpolate(
        torch.from_numpy(given["masks"]), size=stuff.shape, mode="bilinear", align_corners=False
    )[0].numpy()
    ids, found = np.zeros(stuff.shape, np.int32), {}
    for mask, score, kind in zip(masks, given["scores"][0], given["classes"][0], strict=True):
        if score < rules.score_threshold:
            continue
        inside = mask > rules.mask_threshold
        if not inside.any() or (inside & (ids > 0)).sum() / inside.sum() > rules.overlap:
            continue
        found[len(found) + 1] = int(kind)
        ids[inside & (ids == 0)] = len(found)
    for index, kind in ((1, 0), (2, 2), (3, 4)):
        where = (stuff == index) & (ids == 0)
        if where.sum() >= max(rules.stuff_area, 1):
            found[len(found) + 1] = kind
            ids[where] = len(found)
    return ids, found


@pytest.mark.parametrize("size", [(32, 48), (36, 44), (64, 40)])
@pytest.mark.parametrize("seed", range(12))
def test_segments_are_those_of_a_plain_restatement(seed: int, size: tuple[int, int]) -> None:
    given = outputs(seed, size)
    (ids, found), *more = panoptic_segments(given, CLASSES, THINGS, RULES)
    wanted, classes = plain(given, RULES)
    assert not more
    assert found == classes
    assert ids.dtype == np.int32
    # Rounding may turn a pixel that lies on the threshold itself.
    assert (ids != wanted).sum() <= 1


def test_the_scenes_hold_what_the_rules_are_about() -> None:
    dropped = covered = 0
    for seed in range(12):
        given = outputs(seed, (32, 48))
        strict, loose = replace(RULES, overlap=0.2), replace(RULES, overlap=1.0)
        ((_, few),), ((_, many),) = (
            list(panoptic_segments(given, CLASSES, THINGS, rules)) for rules in (strict, loose)
        )
        dropped += len(few) < len(many)
        ((_, small),) = panoptic_segments(given, CLASSES, THINGS, replace(RULES, stuff_area=0))
        ((_, large),) = panoptic_segments(given, CLASSES, THINGS, replace(RULES, stuff_area=10_000))
        covered += len(large) < len(small)
    assert dropped > 3
    assert covered == 12


def test_nothing_found_is_an_empty_map() -> None:
    given = outputs(0, (32, 48))
    given["scores"][:] = 0
    given["stuff_ids"][:] = 0
    ((ids, found),) = panoptic_segments(given, CLASSES, THINGS, RULES)
    assert found == {}
    assert not ids.any()
