"""Classification: one class for the whole image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segforge.datasets.core.index import Sample
from segforge.files import write_csv
from segforge.passport import Array, Outputs, Passport
from segforge.tasks.core.base import Task
from segforge.tasks.core.overlay import Picture


class Classification(Task):
    """A prediction is float32 logits [classes]."""

    name = "classification"
    metrics = ("topk",)
    column = "top1"
    pictures = 12
    of_pixels = False

    def output_names(self, tail: str) -> list[str]:
        return ["logits"]

    def fixed_output(self, passport: Passport) -> dict[str, Any]:
        return {"name": "logits", "dtype": "float32", "shape": [len(passport.classes)]}

    def predictions(self, outputs: Outputs, passport: Passport) -> Iterable[Array]:
        return outputs["logits"]

    def classes_of(self, prediction: Array) -> Array:
        return np.asarray(prediction.argmax())

    def at_size(self, prediction: Array, height: int, width: int) -> Array:
        return prediction

    def read_label(self, sample: Sample) -> int:
        assert isinstance(sample.label, int)
        return sample.label

    def batch_of(self, prediction: Array, label: int) -> tuple[Array, Array]:
        return prediction[None], np.array([label])

    def picture(self, image: Array, sample: Sample, prediction: Array, passport: Passport) -> Picture:
        return Picture(passport.classes[self.read_label(sample)], passport.classes[int(prediction.argmax())])

    def row(self, path: Path, prediction: Array, passport: Passport) -> dict[str, Any]:
        shares = np.exp(prediction - prediction.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        return {"image": str(path), "class": passport.classes[best], "probability": f"{shares[best]:.4f}"}

    def save_table(self, rows: list[dict[str, Any]], folder: Path, passport: Passport) -> None:
        """predictions.csv."""
        write_csv(folder / "predictions.csv", ["image", "class", "probability"], rows)


TASK = Classification()
