"""The metrics against torchmetrics on one machine, in turns; torch keeps its own choice of threads, ours use one."""

import time
from statistics import median

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from segforge.datasets.core.index import Segment
from segforge.datasets.core.panoptic import PanopticMap
from segforge.tasks.panoptic.quality import PanopticQuality
from segforge.tasks.semantic.miou import MeanIoU

pytestmark = pytest.mark.slow


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours, theirs, turns):
    """How many times as long `theirs` takes: by the best of all turns (what is asserted), and the turns' median."""
    ours()  # neither side pays for what is done once
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(turns)]
    best = min(t for _, t in pairs) / min(o for o, _ in pairs)
    return best, median(t / o for o, t in pairs)


def report(capsys, record_property, what, best, middle):
    record_property(what, round(best, 1))
    with capsys.disabled():
        print(f"\n{what}: {best:.0f} times as fast as torchmetrics ({middle:.0f} by the median of the turns)")


def scene(height, width, discs):
    """Two kinds of stuff, and discs that hide one another: ids [height, width]."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:height, :width]
    ids = np.where(rows < height // 3 + columns // 16, 1, 2) + np.zeros((height, width), np.int64)
    for number in range(3, 3 + discs):
        cell = divmod(number - 3, 8)  # a place of its own keeps each visible
        y, x = (cell[0] + rng.random()) * height / 5, (cell[1] + rng.random()) * width / 8
        ids[(rows - y) ** 2 + (columns - x) ** 2 < rng.integers(30, 50) ** 2] = number
    return ids


def test_panoptic_quality_at_512x1024_with_40_segments(capsys, record_property):
    label = scene(512, 1024, 38)
    found = np.roll(label, (3, 5), (0, 1))
    found[np.isin(found, [7, 20])] = 2  # two are missed
    numbers = np.unique(label)
    assert len(numbers) == 40
    kinds = np.zeros(numbers.max() + 1, np.int64)
    kinds[numbers] = np.where(numbers < 3, numbers - 1, 2 + numbers % 17)
    spread = np.zeros(len(kinds), np.int32)
    spread[numbers] = numbers * 400_009 % (1 << 24)  # ids as COCO has them
    truth = PanopticMap(spread[label], tuple(Segment(int(spread[n]), int(kinds[n]), False) for n in numbers))
    prediction = (found.astype(np.int32), {int(n): int(kinds[n]) for n in np.unique(found)})
    pairs = [torch.from_numpy(np.stack([kinds[ids], ids], axis=-1)[None]) for ids in (found, label)]

    ours = PanopticQuality(19, range(2, 19))
    theirs = TorchmetricsPanopticQuality(things=set(range(2, 19)), stuffs={0, 1})
    best, middle = compare(lambda: ours.update([prediction], [truth]), lambda: theirs.update(*pairs), turns=2)
    # Without void and crowds, and with one region a kind of stuff, both define the same figure (theirs in float32).
    assert ours.result()["score"] == pytest.approx(float(theirs.compute()), abs=1e-6)
    report(capsys, record_property, "panoptic quality", best, middle)
    assert best >= 20


@pytest.mark.parametrize("kind", ["noise", "regions"])
def test_miou_at_1024x2048_with_19_classes_and_batch_8(kind, capsys, record_property):
    rng = np.random.default_rng(0)
    cells = (8, 1024, 2048) if kind == "noise" else (8, 16, 32)
    labels = rng.integers(0, 19, cells, dtype=np.uint8)
    labels = labels.repeat(1024 // cells[1], 1).repeat(2048 // cells[2], 2)
    labels[:, :40] = 255
    predictions = np.where(np.roll(labels, 9, 2) == 255, 0, np.roll(labels, 9, 2))
    tensors = torch.from_numpy(predictions), torch.from_numpy(labels)  # as wide integers they would take longer

    ours, theirs = MeanIoU(19, 255), MulticlassJaccardIndex(19, ignore_index=255)
    best, middle = compare(lambda: ours.update(predictions, labels), lambda: theirs.update(*tensors), turns=3)
    assert ours.result()["score"] == pytest.approx(float(theirs.compute()), abs=1e-6)
    report(capsys, record_property, f"mIoU of {kind}", best, middle)
    assert best >= 5
