"""The model half: a network, its data and how it leaves PyTorch; the primary configs `network` and `dataset`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from segforge.config.recipe import Dataset, Recipe
from segforge.config.rules import TASKS, check_fields, choice, must, ruled
from segforge.layout import VariantPaths


@dataclass
class Inference:
    """How a panoptic network's predictions become segments (arXiv 2012.00720)."""

    thing_threshold: float = 0.05  # of a thing's position score
    stuff_threshold: float = 0.05
    candidates: int = 100  # each level gives half as many at most
    detections: int = 100  # that leave the graph
    similarity: float = 0.9  # cosine from which two kernels of a class are one thing
    mask_threshold: float = 0.4
    score_threshold: float = 0.2  # of position times mask; from here on the host's
    overlap: float = 0.5  # share of a mask that may be painted already
    stuff_area: int = 4096  # least pixels of a stuff class


@dataclass
class Model:
    """An architecture with a task."""

    name: str = MISSING
    task: str = choice(*TASKS)
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the family's builder
    family: str = ""  # the file in architectures/ that builds it; its own name when empty
    inference: Inference | None = None  # panoptic networks only; may change without training anew

    def __post_init__(self) -> None:
        if not self.family and self.name != MISSING:
            self.family = self.name

    def check(self, dataset: Dataset) -> None:
        """Raise `SegforgeError` for a task that `dataset` has no labels for."""
        problem = f"model {self.name!r} needs {self.task} labels, and data set {dataset.name!r} has none"
        serves = f"a data set for {self.task}; {dataset.name} serves {', '.join(dataset.tasks)}"
        must(self.task in dataset.tasks, problem, serves)


@dataclass
class Backbone:
    """A model's feature extractor."""

    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Export:
    """The ONNX file: its tail, its batches, and what a conversion may change."""

    opset: int = ruled("18 or later: the exporter writes nothing older", lambda opset: opset >= 18)
    tail: str = choice("argmax", "logits")  # argmax: uint8 class ids
    resize: str = choice("graph", "host")  # where logits are brought to the labels' size; host: of logits alone
    input_layout: str = choice("nchw_float32", "nhwc_uint8")  # normalised by the host, or in the graph
    batch_min: int = MISSING
    batch_max: int = MISSING
    check_images: int = MISSING  # real images on which each conversion is compared
    check_batches: list[int] = MISSING
    tolerance: float = MISSING  # share of outputs (pixels, top-1) that may differ from the checkpoint
    simplifier: str = choice("onnxsim", "onnxslim")

    def check(self) -> None:
        """Raise `SegforgeError` where the file could not be written or not be compared."""
        problem = "export.resize=host needs logits: class ids that are enlarged afterwards score less"
        fits = self.resize == "graph" or self.tail == "logits"
        must(fits, problem, "export.tail=logits export.resize=host, or export.resize=graph")
        problem = f"export.batch_min={self.batch_min}, export.batch_max={self.batch_max}"
        must(1 <= self.batch_min <= self.batch_max, problem, "1 <= batch_min <= batch_max")
        problem = f"export.check_batches={self.check_batches}, export.check_images={self.check_images}"
        expected = "a batch and an image at least: a conversion is accepted on what they show"
        must(bool(self.check_batches) and self.check_images >= 1, problem, expected)
        outside = [b for b in self.check_batches if not self.batch_min <= b <= self.batch_max]
        problem = f"export.check_batches {outside} lie outside the exported range"
        must(not outside, problem, f"batches from {self.batch_min} to {self.batch_max}")


@dataclass
class Mmseg:
    """Of model=mmseg."""

    config: str | None = None  # the name of one of mmsegmentation's own configs


@dataclass
class NetworkConfig:
    """The model half: one variant."""

    variant: str = MISSING
    seed: int = 0
    train_on: str = "auto"  # auto, cpu or cuda
    mmseg: Mmseg = field(default_factory=Mmseg)
    model: Model = field(default_factory=Model)
    backbone: Backbone = field(default_factory=Backbone)
    dataset: Dataset = field(default_factory=Dataset)
    recipe: Recipe = field(default_factory=Recipe)
    export: Export = field(default_factory=Export)

    @property
    def paths(self) -> VariantPaths:
        """Where the variant lives."""
        return VariantPaths(self.variant)

    @property
    def things(self) -> list[int]:
        """The ids of the classes that a panoptic network counts; none for another network."""
        if self.model.task != "panoptic":
            return []
        names = self.dataset.classes.get("panoptic", [])
        return [i for i, name in enumerate(names) if name in self.dataset.things]

    def check(self) -> None:
        """Raise `SegforgeError` where the parts of the model half cannot work together."""
        check_fields(self)
        self.model.check(self.dataset)
        self.recipe.check(self.variant, self.model.task, self.dataset.score_split)
        self.export.check()
        self.dataset.check()


@dataclass
class DatasetConfig:
    """The download stage: one data set, and a recipe's weights when one is named."""

    dataset: Dataset = field(default_factory=Dataset)
    recipe: Recipe | None = None

    def check(self) -> None:
        """Raise `SegforgeError` where the data set cannot be served."""
        check_fields(self)
        self.dataset.check()
