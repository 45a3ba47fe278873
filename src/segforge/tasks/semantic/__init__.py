"""Semantic segmentation: a class for every pixel."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.datasets.core.images import read_label_ids, resize_ids
from segforge.datasets.core.index import Sample, label_file
from segforge.passport import Array, Outputs, Passport
from segforge.tasks.core.base import Task


class Semantic(Task):
    """A prediction is uint8 class ids [H, W]."""

    name = "semantic"
    metrics = ("miou",)
    column = "iou"

    def output_names(self, tail: str) -> list[str]:
        return ["ids"] if tail == "argmax" else ["logits"]

    def fixed_output(self, passport: Passport) -> dict[str, Any] | None:
        size = [passport.output_height, passport.output_width]
        if passport.tail == "argmax":
            return {"name": "ids", "dtype": "uint8", "shape": size}
        logits = {"name": "logits", "dtype": "float32", "shape": [len(passport.classes), *size]}
        return logits if passport.resize == "graph" else None

    def predictions(self, outputs: Outputs, passport: Passport) -> Iterable[Array]:
        """Ids of the passport's output size; logits of the head's size are enlarged, bilinear as in the graph."""
        if passport.tail == "argmax":
            return outputs["ids"]
        if passport.resize == "graph":
            return np.asarray(outputs["logits"].argmax(axis=1), np.uint8)
        return (_enlarged_argmax(plane, passport.output_height, passport.output_width) for plane in outputs["logits"])

    def layers(self, thing: Array) -> tuple[Array, Array]:
        return thing, thing

    def at_size(self, prediction: Array, height: int, width: int) -> Array:
        return resize_ids(prediction, height, width)

    def read_label(self, sample: Sample) -> Array:
        return read_label_ids(label_file(sample))

    def batch_of(self, prediction: Array, label: Array) -> tuple[Array, Array]:
        return resize_ids(prediction, *label.shape), label

    def write(self, png: Path, prediction: Array) -> None:
        """Class ids in grey."""
        Image.fromarray(prediction).save(png, "PNG")


def _enlarged_argmax(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    best, ids = np.full((height, width), -np.inf, np.float32), np.zeros((height, width), np.uint8)
    for index, plane in enumerate(logits):
        large = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        better = large > best
        best[better] = large[better]
        ids[better] = index
    return ids


TASK = Semantic()
