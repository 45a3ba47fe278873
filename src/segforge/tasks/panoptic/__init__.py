"""Panoptic segmentation: a class for every pixel, and things told apart."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segforge.config.network import Inference
from segforge.datasets.core import panoptic
from segforge.datasets.core.index import Sample
from segforge.datasets.core.panoptic import PanopticMap, Prediction
from segforge.files import write_json
from segforge.passport import Array, Outputs, Passport
from segforge.tasks.core.base import Task
from segforge.tasks.panoptic.segments import OUTPUTS, panoptic_segments


class Panoptic(Task):
    """A prediction is integer segment ids [H, W], 0 where nothing was found, and the class of each."""

    name = "panoptic"
    metrics = ("quality",)
    column = "pq"
    counts_things = True

    def output_names(self, tail: str) -> list[str]:
        return list(OUTPUTS)

    def fixed_output(self, passport: Passport) -> dict[str, Any]:
        return {"name": "stuff_ids", "dtype": "uint8", "shape": [passport.output_height, passport.output_width]}

    def predictions(self, outputs: Outputs, passport: Passport) -> Iterable[Prediction]:
        rules = Inference(**passport.options["inference"])
        return panoptic_segments(outputs, len(passport.classes), passport.things, rules)

    def layers(self, thing: Prediction | PanopticMap) -> tuple[Array, Array]:
        """Borders follow the segments, colours their classes."""
        return panoptic.semantic_of(thing), thing[0]

    def at_size(self, prediction: Prediction, height: int, width: int) -> Prediction:
        return panoptic.resized(prediction, height, width)

    def read_label(self, sample: Sample) -> PanopticMap:
        return panoptic.read_panoptic(sample)

    def batch_of(self, prediction: Prediction, label: PanopticMap) -> tuple[list[Prediction], list[PanopticMap]]:
        return [self.at_size(prediction, *label.ids.shape)], [label]

    def training_label(self, sample: Sample, things: Sequence[int]) -> Array:
        return panoptic.instance_map(sample, things)

    def label_void(self, void: int) -> int:
        """Instance maps have their own: 255 is as good a number as any other there."""
        return -1

    def differing(self, expected: Prediction, found: Prediction) -> Array:
        """In another class, or in another segment."""
        return super().differing(expected, found) | _parted(expected[0], found[0])

    def write(self, png: Path, prediction: Prediction) -> None:
        """Segment ids in COCO's format."""
        panoptic.write_segment_ids(png, prediction[0])

    def row(self, path: Path, prediction: Prediction, passport: Passport) -> dict[str, Any]:
        described = panoptic.describe_segments(*prediction)
        return {"image": path.name, "file_name": self.files(path.stem)[0], "segments_info": described}

    def save_table(self, rows: list[dict[str, Any]], folder: Path, passport: Passport) -> None:
        """panoptic.json, in COCO's format."""
        names, things = passport.classes, passport.things
        categories = [{"id": i, "name": name, "isthing": int(i in things)} for i, name in enumerate(names)]
        write_json(folder / "panoptic.json", {"annotations": rows, "categories": categories})


def _parted(ids: Array, others: Array) -> Array:
    """Where a pixel's two segments are not each other's best match; their numbers follow scores, which may tie."""
    shared = np.zeros((ids.max() + 1, others.max() + 1), np.int64)
    np.add.at(shared, (ids, others), 1)
    return np.asarray((shared.argmax(1)[ids] != others) | (shared.argmax(0)[others] != ids))


TASK = Panoptic()
