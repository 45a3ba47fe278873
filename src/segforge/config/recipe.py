"""A data set, and what belongs to one (model, backbone, dataset) triple: weights, input, schedule."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from segforge.config.rules import SPLITS, TASKS, choice, must, ruled


@dataclass
class Download:
    """One file: where it comes from, what it must hash to, under which terms."""

    url: str = ""  # empty: there is no public address for these very bytes; the mirror must have it
    sha256: str = MISSING  # whole; its first 8 digits or more where no more is published
    name: str = MISSING  # the file's name, shown in messages
    licence: str = ""
    note: str = ""


@dataclass
class Weights(Download):
    """A file of weights to start from."""

    holds: str = choice("backbone", "network", default="backbone")


@dataclass
class Dataset:
    """Images and labels of one or more tasks."""

    name: str = MISSING
    format: str = ""  # the file in datasets/ that reads it; its own name when empty
    tasks: list[str] = ruled(f"one or more of {', '.join(TASKS)}", lambda tasks: tasks and {*tasks} <= {*TASKS})
    classes: dict[str, list[str]] = MISSING  # task -> class names, in id order
    colours: list[list[int]] = field(default_factory=list)  # RGB per semantic class, for overlays
    things: list[str] = field(default_factory=list)
    # Label id that is neither trained on nor scored.
    void: int = ruled("0 to 255: labels are stored in 8 bits", lambda void: 0 <= void <= 255, 255)
    score_split: str = choice(*SPLITS, default="test")  # where test has no public labels: val
    void_rule: str = choice("ignore", "wrong", default="ignore")  # of mIoU; wrong: so is every class predicted on void
    height: int = MISSING  # of images and labels as stored; 0 where it varies
    width: int = MISSING
    folder: str | None = None  # a local copy in the data set's own layout, instead of `archives`
    archives: list[Download] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.format and self.name != MISSING:
            self.format = self.name

    def check(self) -> None:
        """Raise `SegforgeError` where classes and things cannot be served, before anything is drawn or downloaded."""
        # Only an image folder names its classes itself.
        bare = [] if self.format == "image_folder" else [task for task in self.tasks if not self.classes.get(task)]
        none = ", ".join(bare)
        problem = f"data set {self.name!r} has no {none} classes"
        must(not bare, problem, f"dataset.classes.{none}, or dataset.tasks without {none}")
        named = self.classes.get("panoptic", [])
        foreign = [name for name in self.things if name not in named]
        problem = f"dataset.things: {', '.join(foreign)}: no panoptic class of {self.name}"
        must(not foreign, problem, f"some of {', '.join(named) or '(none)'}")


@dataclass
class Input:
    """What the network is fed: geometry, colour order and normalisation (of values in 0..255)."""

    height: int = MISSING
    width: int = MISSING
    colour_order: str = choice("rgb", "bgr", default="rgb")
    mean: list[float] = ruled("a value for each of three channels", lambda m: len(m) == 3, [123.675, 116.28, 103.53])
    std: list[float] = ruled(
        "a value above 0 for each of three channels", lambda s: len(s) == 3 and min(s) > 0, [58.395, 57.12, 57.375]
    )


@dataclass
class Loss:
    """Of a semantic network or a classifier; a panoptic one has its own."""

    name: str = choice("cross_entropy", "ohem", "ohem_threshold", default="cross_entropy")
    class_weights: str = choice("none", "inverse_log", default="none")  # ENet, arXiv 1606.02147: 1 / ln(1.02 + p)
    label_smoothing: float = 0.0
    ohem_fraction: float = 0.25  # hardest share of pixels that count
    ohem_start: float = 0.25  # share of the schedule after which ohem replaces cross_entropy
    ohem_threshold: float = 0.7  # pixels count whose true class has a smaller probability
    ohem_least: float = 0.0625  # share of pixels that count at least
    auxiliary_weight: float = 1.0  # of each auxiliary head's loss


@dataclass
class Augment:
    """Drawn per image, on the device."""

    scale: list[float] = ruled("[low, high], 0 < low <= high", lambda s: len(s) == 2 and 0 < s[0] <= s[1], [0.5, 2.0])
    rotate_deg: float = 0.0
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0


@dataclass
class Training:
    """The schedule, and what is trained on."""

    epochs: int = ruled("1 or more, or 0: the weights as they come", lambda epochs: epochs >= 0)
    batch: int = ruled("2 or more: batch norm needs a batch", lambda batch: batch >= 2)
    optimizer: str = choice("adamw", "sgd", default="adamw")
    lr: float = MISSING
    backbone_lr_factor: float = 1.0
    weight_decay: float = 0.01  # not on biases and norms
    momentum: float = 0.9
    warmup: float = 0.05  # share of the steps
    power: float = 0.9  # poly: (1 - step/steps) ** power
    ema_decay: float = 0.0  # 0: none
    amp: str = choice("none", "bf16", "fp16", default="none")
    splits: list[str] = field(default_factory=lambda: ["train"])
    select: str | None = "val"  # split that picks the best checkpoint; null: the last one is the best
    validate_every: int = ruled("1 epoch or more", lambda epochs: epochs >= 1, 1)
    # Height and width of what is trained on; null: recipe.input's.
    crop: list[int] | None = ruled(
        "[height, width], or null", lambda crop: crop is None or (len(crop) == 2 and min(crop) > 0), None
    )
    gradient_clip: float | None = None  # largest norm
    options: dict[str, Any] = field(default_factory=dict)  # of the network, over the model's own: auxiliary heads
    loss: Loss = field(default_factory=Loss)
    augment: Augment = field(default_factory=Augment)


@dataclass
class Published:
    """A score from a paper or model zoo, never one of ours."""

    metric: str = MISSING
    score: float = MISSING
    source: str = MISSING


@dataclass
class Recipe:
    """One variant's."""

    name: str = MISSING
    weights: Weights | None = None
    input: Input = field(default_factory=Input)
    training: Training = field(default_factory=Training)
    budget: dict[str, float] = field(default_factory=dict)  # precision -> score that may be lost, over the precision's
    published: Published | None = None

    def check(self, variant: str, task: str, scored: str) -> None:
        """Raise `SegforgeError` where the recipe is another variant's, or looks at the split that is `scored`."""
        own, training, weighted = f"recipe {self.name!r}", self.training, self.training.loss.class_weights
        problem = f"{own} belongs to another variant than {variant!r}"
        must(self.name == variant, problem, f"conf/recipe/{variant}.yaml with name: {variant}")
        problem = f"recipe.training.loss.class_weights={weighted}"
        fits = weighted == "none" or task != "panoptic"
        must(fits, problem, "none: a panoptic network's losses know no class weights")
        problem = f"{own} trains on {scored!r}, the split that it is scored on"
        must(scored not in training.splits, problem, f"training.splits without {scored}")
        problem = f"{own} picks its best checkpoint on {training.select!r}, on which it trains"
        expected = "a split outside training.splits, or training.select: null (the last checkpoint)"
        must(training.select not in training.splits, problem, expected)
        problem = f"{own} would choose its checkpoint on {scored!r}, the scored split"
        must(training.select != scored, problem, "another split, or training.select: null (the last checkpoint)")
