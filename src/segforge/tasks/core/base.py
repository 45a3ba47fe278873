"""The contract of a task and of its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from segforge.datasets.core.images import resize_image
from segforge.datasets.core.index import Sample
from segforge.files import atomic_file, write_bytes
from segforge.passport import Array, Outputs, Passport
from segforge.tasks.core.overlay import Picture, jpeg, overlay


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean: as much of it as a metric needs."""

    classes: int
    void: int
    things: Sequence[int] = ()
    void_rule: str = "ignore"


class Metric(Protocol):
    """A score over a data set, gathered batch by batch without rounding: shards merge without error."""

    name: ClassVar[str]

    @classmethod
    def of(cls, labels: Labels) -> Self:
        """A fresh one for a data set with these labels."""

    def update(self, predictions: Any, labels: Any) -> None:
        """Count one batch, in the form of its task."""

    def merge(self, other: Self) -> None:
        """Add what `other` counted; the result is that of one metric that saw everything."""

    def result(self) -> dict[str, Any]:
        """`score` (0..1), `per_class` (0..1, None for a class that never occurs) and the metric's extras."""


class Scores:
    """The metrics of a task over one data set; the first gives the score that is gated."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics

    def update(self, predictions: Any, labels: Any) -> None:
        """Count one batch in every metric."""
        for metric in self.metrics:
            metric.update(predictions, labels)

    def merge(self, other: Self) -> None:
        """Add what `other`, of the same metrics, counted."""
        for own, more in zip(self.metrics, other.metrics, strict=True):
            own.merge(more)

    def result(self) -> dict[str, Any]:
        """The first metric's result, and the score of each further one under its name."""
        first, *further = self.metrics
        return first.result() | {metric.name: metric.result()["score"] for metric in further}


class Task(ABC):
    """What a network is asked about an image, from its labels to its scores and pictures.

    A prediction is what an engine's outputs say of one image, in the task's own form. A task that is not
    `of_pixels` needs neither `layers` nor `write`, and gives `classes_of` and `picture` itself.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]  # a file of the task's folder each, with its METRIC; the first is the score
    column: ClassVar[str]  # of the score of each class
    pictures: ClassVar[int] = 4  # in the report
    of_pixels: ClassVar[bool] = True  # says something of every pixel, at the labels' size
    counts_things: ClassVar[bool] = False

    @property
    def metric(self) -> str:
        """The name of the score."""
        return self.metric_types()[0].name

    def metric_types(self) -> list[type[Metric]]:
        """The metrics, imported only when asked for."""
        return [import_module(f"segforge.tasks.{self.name}.{name}").METRIC for name in self.metrics]

    def scores(self, labels: Labels) -> Scores:
        """Fresh metrics for a data set with these labels."""
        return Scores([metric.of(labels) for metric in self.metric_types()])

    @abstractmethod
    def output_names(self, tail: str) -> list[str]:
        """What the outputs of an exported network are called, in their order."""

    @abstractmethod
    def fixed_output(self, passport: Passport) -> dict[str, Any] | None:
        """The output (name, dtype, shape) that follows from the labels, where there is one."""

    @abstractmethod
    def predictions(self, outputs: Outputs, passport: Passport) -> Iterable[Any]:
        """A prediction for each image of a batch; it may share the outputs' memory."""

    def layers(self, thing: Any) -> tuple[Array, Array]:
        """Of a prediction or a label the class ids [H, W], and the regions [H, W] that borders are drawn between."""
        raise NotImplementedError

    def classes_of(self, prediction: Any) -> Array:
        """The decided classes of a prediction, a copy: ids [H, W], or one class id."""
        return self.layers(prediction)[0].copy()

    @abstractmethod
    def at_size(self, prediction: Any, height: int, width: int) -> Any:
        """The prediction for an image of another size (nearest)."""

    @abstractmethod
    def read_label(self, sample: Sample) -> Any:
        """The label that a prediction is scored against."""

    @abstractmethod
    def batch_of(self, prediction: Any, label: Any) -> tuple[Any, Any]:
        """A prediction, brought to its label's size, and the label in the form that the metrics take."""

    def training_label(self, sample: Sample, things: Sequence[int]) -> Array:
        """What a network is trained on: integer ids [H, W], or one class id."""
        return np.asarray(self.read_label(sample))

    def label_void(self, void: int) -> int:
        """The value of a training label's pixels that nothing is learnt from, for a data set's `void`."""
        return void

    def differing(self, expected: Any, found: Any) -> Array:
        """Where two predictions of one image differ: bool [H, W], or one bool."""
        return np.asarray(self.classes_of(expected) != self.classes_of(found))

    def picture(self, image: Array, sample: Sample, prediction: Any, passport: Passport) -> Picture:
        """The prediction beside the label, for the report."""
        truth, regions = self.layers(self.read_label(sample))
        predicted, parts = self.layers(self.at_size(prediction, *truth.shape))
        image, counted = resize_image(image, *truth.shape), truth != passport.void
        right = float((predicted == truth)[counted].mean()) if counted.any() else None
        return Picture(overlay(image, truth, regions, passport), overlay(image, predicted, parts, passport), right)

    def files(self, stem: str) -> list[str]:
        """The names of what `save` writes for an image: ids in a PNG of its own size, and an overlay."""
        return [f"{stem}.png", f"{stem}-overlay.jpg"] if self.of_pixels else []

    def save(
        self, image: Array, path: Path, prediction: Any, folder: Path, passport: Passport
    ) -> dict[str, Any] | None:
        """Write the `files` of a prediction for the image file `path` into `folder`, and return its `row`."""
        own = self.at_size(prediction, *image.shape[:2])
        if self.of_pixels:
            png, drawn = self.files(path.stem)
            with atomic_file(folder / png) as temporary:
                self.write(temporary, own)
            write_bytes(folder / drawn, jpeg(overlay(image, *self.layers(own), passport)))
        return self.row(path, own, passport)

    def write(self, png: Path, prediction: Any) -> None:
        """Write the PNG of a prediction."""
        raise NotImplementedError

    def row(self, path: Path, prediction: Any, passport: Passport) -> dict[str, Any] | None:
        """What the table beside the files says of the image file `path`; nothing by itself."""
        return None

    def save_table(self, rows: list[dict[str, Any]], folder: Path, passport: Passport) -> None:  # noqa: B027
        """Write what stands beside the files of all images; nothing by itself."""
