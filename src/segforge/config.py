"""The schema of conf/: a wrong key, type, name or combination fails here, before work starts.

Three primary configs compose it: `network` (the model half: train, export, simplify), `engine`
(the engine half: quantize, build, evaluate, gate, benchmark, predict) and `dataset` (download).
`machine` holds what the stages about the machine itself and the report need.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, OmegaConf

from segforge.errors import SegforgeError, unknown_name

TASKS = ("semantic", "panoptic", "classification")
VOID_RULES = ("ignore", "wrong")
METRIC_OF_TASK = {"semantic": "miou", "panoptic": "pq", "classification": "top1"}


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
    name: str = MISSING
    task: str = MISSING  # semantic, panoptic or classification
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the registered builder
    architecture: str = ""  # the file in architectures/ that builds it; its own name when empty
    inference: Inference | None = None  # panoptic networks only; may change without training anew

    @property
    def builder(self) -> str:
        """The name of the architecture in the registry."""
        return self.architecture or self.name


@dataclass
class Backbone:
    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)


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

    holds: str = "backbone"  # backbone or network


@dataclass
class Dataset:
    name: str = MISSING
    layout: str = ""  # the file in datasets/ that reads it; its own name when empty
    tasks: list[str] = MISSING
    classes: dict[str, list[str]] = MISSING  # task -> class names, in id order
    colours: list[list[int]] = field(default_factory=list)  # RGB per semantic class, for overlays
    things: list[str] = field(default_factory=list)
    void: int = 255  # label id that is neither trained on nor scored
    void_rule: str = "ignore"  # of mIoU: ignore, or wrong (so is every class predicted there)
    height: int = MISSING  # of images and labels as stored; 0 where it varies
    width: int = MISSING
    folder: str | None = None  # a local copy in the data set's own layout, instead of `archives`
    archives: list[Download] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Input:
    """What the network is fed: geometry, colour order and normalisation (of values in 0..255)."""

    height: int = MISSING
    width: int = MISSING
    colour_order: str = "rgb"  # rgb or bgr
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])


@dataclass
class Loss:
    name: str = "cross_entropy"  # cross_entropy, ohem or ohem_threshold
    class_weights: str = "none"  # none or inverse_log (ENet, arXiv 1606.02147: 1 / ln(1.02 + p))
    label_smoothing: float = 0.0
    ohem_fraction: float = 0.25  # hardest share of pixels that count
    ohem_start: float = 0.25  # share of the schedule after which ohem replaces cross_entropy
    ohem_threshold: float = 0.7  # pixels count whose true class has a smaller probability
    ohem_least: float = 0.0625  # share of pixels that count at least
    auxiliary_weight: float = 1.0  # of each auxiliary head's loss


@dataclass
class Augment:
    """Drawn per image, on the device."""

    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    rotate_deg: float = 0.0
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0


@dataclass
class Training:
    epochs: int = MISSING
    batch: int = MISSING
    optimizer: str = "adamw"  # adamw or sgd
    lr: float = MISSING
    backbone_lr_factor: float = 1.0
    weight_decay: float = 0.01  # not on biases and norms
    momentum: float = 0.9
    warmup: float = 0.05  # share of the steps
    power: float = 0.9  # poly: (1 - step/steps) ** power
    ema_decay: float = 0.0  # 0: none
    amp: str = "none"  # none, bf16 or fp16
    splits: list[str] = field(default_factory=lambda: ["train"])
    select: str | None = "val"  # split that picks the best checkpoint; null: the last one is the best
    validate_every: int = 1  # epochs
    crop: list[int] | None = None  # height and width of what is trained on; null: recipe.input's
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
    """What belongs to one (model, backbone, dataset) triple."""

    name: str = MISSING
    weights: Weights | None = None
    input: Input = field(default_factory=Input)
    training: Training = field(default_factory=Training)
    score_split: str = "test"
    budget: dict[str, float] = field(default_factory=dict)  # precision -> score that may be lost
    published: Published | None = None


@dataclass
class Export:
    opset: int = MISSING
    tail: str = MISSING  # argmax (uint8 class ids) or logits
    resize: str = MISSING  # to the labels' size: in the graph, or by the host (of logits alone)
    input_layout: str = MISSING  # nchw_float32 (normalised by the host) or nhwc_uint8 (in the graph)
    batch_min: int = MISSING
    batch_max: int = MISSING
    check_images: int = MISSING  # real images on which each conversion is compared
    check_batches: list[int] = MISSING
    tolerance: float = MISSING  # share of outputs (pixels, top-1) that may differ from the checkpoint


@dataclass
class Calibration:
    images: int = MISSING
    method: str = MISSING  # minmax, percentile or entropy
    percentile: float = 99.99
    seed: int = 0
    file: str | None = None  # a list in the form of calibration.json, instead of a draw by seed


@dataclass
class Precision:
    name: str = MISSING
    calibration: Calibration | None = None
    per_channel: bool = True
    skip: list[str] = field(default_factory=list)  # ONNX operators that stay in float


@dataclass
class Device:
    name: str = MISSING
    kind: str = MISSING  # cpu, gpu or npu
    precisions: list[str] = MISSING  # numeric types of the hardware
    note: str = ""


@dataclass
class Runtime:
    name: str = MISSING
    devices: list[str] = MISSING  # device kinds
    precisions: list[str] = MISSING
    refused: dict[str, str] = field(default_factory=dict)  # precision -> why it cannot be had here
    activation: str = "uint8"  # type of Q/DQ activations: uint8 or int8
    argmax: str = "planes"  # what the final resize and argmax of an int8 graph read: planes or channels_last
    float_stem: bool = False  # leave a convolution larger than 3x3 that reads the images out of int8
    threads: int = 0  # 0: every core this process may use
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Target:
    name: str = MISSING
    device: Device = field(default_factory=Device)
    runtime: Runtime = field(default_factory=Runtime)


@dataclass
class Benchmark:
    name: str = MISSING
    batches: list[int] = MISSING
    warmup_s: float = MISSING  # at least this long, and until two windows agree
    warmup_max_s: float = MISSING
    measure_s: float = MISSING  # at least this long per quantity and batch
    min_samples: int = MISSING
    streams: int = MISSING  # concurrent requests for throughput
    images: int = MISSING  # real images that are cycled through
    max_cov: float = MISSING  # coefficient of variation above which a figure is not valid


@dataclass
class Mmseg:
    config: str | None = None  # the name of one of mmsegmentation's own configs


@dataclass
class NetworkConfig:
    """The model half: one variant."""

    variant: str = MISSING
    seed: int = 0
    train_on: str = "auto"  # auto, cpu or cuda
    mmseg: Mmseg = field(default_factory=Mmseg)  # for model=mmseg
    model: Model = field(default_factory=Model)
    backbone: Backbone = field(default_factory=Backbone)
    dataset: Dataset = field(default_factory=Dataset)
    recipe: Recipe = field(default_factory=Recipe)
    export: Export = field(default_factory=Export)


@dataclass
class EngineConfig:
    """The engine half: one variant on one target in one precision."""

    variant: str = MISSING
    precision: Precision = field(default_factory=Precision)
    target: Target = field(default_factory=Target)
    benchmark: Benchmark = field(default_factory=Benchmark)
    input: str | None = None  # predict: a file, folder or glob
    output: str | None = None  # predict, preprocess: a folder
    predictions: str | None = None  # evaluate: a folder of outputs from elsewhere, instead of an engine
    against: str = "cpu-torch/fp32"  # compare: <target>/<precision> of the other engine


@dataclass
class DatasetConfig:
    """The download stage: one data set, and a recipe's weights when one is named."""

    dataset: Dataset = field(default_factory=Dataset)
    recipe: Recipe | None = None


@dataclass
class MachineConfig:
    """probe, ceilings and report: the machine and the catalogue as a whole."""

    ceilings_s: float = 0.5  # per measured ceiling
    title: str = "Segforge"


SCHEMAS = {
    "network": NetworkConfig,
    "engine": EngineConfig,
    "dataset": DatasetConfig,
    "machine": MachineConfig,
}


def register() -> None:
    """Make the schema known to Hydra, as `network_schema` and so on; safe to call twice."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)


def check_network(config: NetworkConfig) -> None:
    """Raise `SegforgeError` where the parts of the model half cannot work together."""
    model, dataset, recipe, export = config.model, config.dataset, config.recipe, config.export
    if model.task not in TASKS:
        raise unknown_name("task", model.task, TASKS)
    if model.task not in dataset.tasks:
        raise SegforgeError(
            f"model {model.name!r} needs {model.task} labels, and data set {dataset.name!r} has none",
            expected=f"a data set for {model.task}; {dataset.name} serves {', '.join(dataset.tasks)}",
        )
    if recipe.name != config.variant:
        raise SegforgeError(
            f"recipe {recipe.name!r} belongs to another variant than {config.variant!r}",
            expected=f"conf/recipe/{config.variant}.yaml with name: {config.variant}",
        )
    training = recipe.training
    for value, known, what in (
        (training.optimizer, ("adamw", "sgd"), "recipe.training.optimizer"),
        (training.amp, ("none", "bf16", "fp16"), "recipe.training.amp"),
        (training.loss.name, ("cross_entropy", "ohem", "ohem_threshold"), "recipe.training.loss.name"),
        (training.loss.class_weights, ("none", "inverse_log"), "recipe.training.loss.class_weights"),
        (recipe.weights.holds if recipe.weights else "backbone", ("backbone", "network"), "recipe.weights.holds"),
        (recipe.input.colour_order, ("rgb", "bgr"), "recipe.input.colour_order"),
        (recipe.score_split, ("train", "val", "test"), "recipe.score_split"),
        (export.tail, ("argmax", "logits"), "export.tail"),
        (export.resize, ("graph", "host"), "export.resize"),
        (dataset.void_rule, VOID_RULES, "dataset.void_rule"),
        (export.input_layout, ("nchw_float32", "nhwc_uint8"), "export.input_layout"),
    ):
        if value not in known:
            raise unknown_name(what, value, known)
    scale, crop, mean, std = training.augment.scale, training.crop, recipe.input.mean, recipe.input.std
    weighted = training.loss.class_weights
    for fits, what, expected in (
        (training.epochs >= 0, f"training.epochs={training.epochs}", "1 or more, or 0: the weights as they come"),
        (training.batch >= 2, f"training.batch={training.batch}", "2 or more: batch norm needs a batch"),
        (training.validate_every >= 1, f"training.validate_every={training.validate_every}", "1 epoch or more"),
        (
            len(scale) == 2 and 0 < scale[0] <= scale[-1],
            f"training.augment.scale={scale}",
            "[low, high], 0 < low <= high",
        ),
        (crop is None or (len(crop) == 2 and min(crop) > 0), f"training.crop={crop}", "[height, width], or null"),
        (len(mean) == 3, f"input.mean={mean}", "a value for each of three channels"),
        (len(std) == 3 and min(std) > 0, f"input.std={std}", "a value above 0 for each of three channels"),
        (
            weighted == "none" or model.task != "panoptic",
            f"training.loss.class_weights={weighted}",
            "none: a panoptic network's losses know no class weights",
        ),
    ):
        if not fits:
            raise SegforgeError(f"recipe.{what}", expected=expected)
    if export.resize == "host" and export.tail != "logits":
        raise SegforgeError(
            "export.resize=host needs logits: class ids that are enlarged afterwards score less",
            expected="export.tail=logits export.resize=host, or export.resize=graph",
        )
    if recipe.score_split in training.splits:
        raise SegforgeError(
            f"recipe {recipe.name!r} trains on {recipe.score_split!r}, the split that it is scored on",
            expected="training.splits without score_split",
        )
    if training.select is not None and training.select in training.splits:
        raise SegforgeError(
            f"recipe {recipe.name!r} picks its best checkpoint on {training.select!r}, on which it trains",
            expected="a split outside training.splits, or training.select: null (the last checkpoint)",
        )
    if training.select == recipe.score_split:
        raise SegforgeError(
            f"recipe {recipe.name!r} would choose its checkpoint on {recipe.score_split!r}, the scored split",
            expected="another split, or training.select: null (the last checkpoint)",
        )
    if not 1 <= export.batch_min <= export.batch_max:
        raise SegforgeError(
            f"export.batch_min={export.batch_min}, export.batch_max={export.batch_max}",
            expected="1 <= batch_min <= batch_max",
        )
    if not export.check_batches or export.check_images < 1:
        raise SegforgeError(
            f"export.check_batches={export.check_batches}, export.check_images={export.check_images}",
            expected="a batch and an image at least: a conversion is accepted on what they show",
        )
    outside = [b for b in export.check_batches if not export.batch_min <= b <= export.batch_max]
    if outside:
        raise SegforgeError(
            f"export.check_batches {outside} lie outside the exported range",
            expected=f"batches from {export.batch_min} to {export.batch_max}",
        )
    if export.opset < 18:
        raise SegforgeError(f"export.opset={export.opset}", expected="18 or later: the exporter writes nothing older")


def check_engine(config: EngineConfig) -> None:
    """Raise `SegforgeError` where target and precision cannot work together; says why and what can."""
    precision, device, runtime = config.precision, config.target.device, config.target.runtime
    works = [p for p in runtime.precisions if p in device.precisions]
    alternatives = f"precision={{{','.join(works)}}} target={config.target.name}"
    if precision.name not in works:
        if precision.name not in device.precisions:
            reason = f"{device.name} has no {precision.name} arithmetic" + (f" ({device.note})" if device.note else "")
        else:
            reason = runtime.refused.get(precision.name, f"{runtime.name} has no {precision.name} path")
        raise SegforgeError(
            f"target {config.target.name!r} cannot run {precision.name}: {reason}",
            expected=f"one of {', '.join(works)} on this target",
            hint=alternatives,
        )
    if device.kind not in runtime.devices:
        raise SegforgeError(
            f"runtime {runtime.name!r} does not run on a {device.kind}",
            expected=f"a device of kind {', '.join(runtime.devices)}",
        )
    for value, known, what in (
        (runtime.activation, ("uint8", "int8"), "target.runtime.activation"),
        (runtime.argmax, ("planes", "channels_last"), "target.runtime.argmax"),
    ):
        if value not in known:
            raise unknown_name(what, value, known)
    if runtime.threads < 0:
        raise SegforgeError(
            f"target.runtime.threads={runtime.threads}", expected="0 for every core of this process, or more"
        )
    calibration = precision.calibration
    if calibration and (calibration.images < 1 or not 0 < calibration.percentile <= 100):
        raise SegforgeError(
            f"precision.calibration.images={calibration.images}, percentile={calibration.percentile:g}",
            expected="1 image or more, and a percentile above 0 and up to 100",
        )
    if precision.name == "int8" and not calibration:
        raise SegforgeError("precision=int8 without precision.calibration", expected="how its ranges are found")
    timing = config.benchmark
    if not timing.batches or min(timing.batches) < 1:
        raise SegforgeError(f"benchmark.batches={timing.batches}", expected="batches of 1 or more")
    for what in ("min_samples", "streams", "images"):
        if getattr(timing, what) < 1:
            raise SegforgeError(f"benchmark.{what}={getattr(timing, what)}", expected="1 or more")
    if config.variant.count("-") != 2:
        raise SegforgeError(
            f"variant {config.variant!r} is no <model>-<backbone>-<dataset>",
            expected=f"one of {', '.join(known_variants())}",
        )
    if config.variant not in known_variants():
        raise unknown_name("variant", config.variant, known_variants())


def check_dataset(config: DatasetConfig) -> None:
    """Raise `SegforgeError` where a data set's config cannot be served, before anything is drawn or downloaded."""
    dataset = config.dataset
    if not dataset.tasks or not set(dataset.tasks) <= set(TASKS):
        raise SegforgeError(f"dataset.tasks={dataset.tasks}", expected=f"one or more of {', '.join(TASKS)}")
    # Only an image folder names its classes itself.
    bare = [task for task in dataset.tasks if not dataset.classes.get(task)]
    if bare and (dataset.layout or dataset.name) != "image_folder":
        raise SegforgeError(
            f"data set {dataset.name!r} has no {bare[0]} classes",
            expected=f"dataset.classes.{bare[0]}, or dataset.tasks without {bare[0]}",
        )
    if not 0 <= dataset.void <= 255:
        raise SegforgeError(f"dataset.void={dataset.void}", expected="0 to 255: labels are stored in 8 bits")
    if dataset.void_rule not in VOID_RULES:
        raise unknown_name("dataset.void_rule", dataset.void_rule, VOID_RULES)
    named = dataset.classes.get("panoptic", [])
    foreign = [name for name in dataset.things if name not in named]
    if foreign:
        raise SegforgeError(
            f"dataset.things: {', '.join(foreign)}: no panoptic class of {dataset.name}",
            expected=f"some of {', '.join(named) or '(none)'}",
        )


def engine_config(variant: str, target: str, precision: str) -> EngineConfig:
    """The config of another engine, composed and checked as its stages compose it."""
    register()
    words = [f"variant={variant}", f"target={target}", f"precision={precision}"]
    # Inside a stage Hydra already stands on conf/, and refuses to be set up twice.
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
        composed = OmegaConf.to_object(compose("engine", words))
    assert isinstance(composed, EngineConfig)
    check_engine(composed)
    return composed


def known_variants() -> list[str]:
    """Every variant that has a recipe."""
    return sorted(path.stem for path in Path("conf", "recipe").glob("*.yaml"))


def budget(variant: str, precision: str) -> float:
    """The score that `variant` may lose in `precision`, from its recipe.

    Read on its own, so that a new budget re-runs the gate and nothing else.
    """
    path = Path("conf", "recipe", f"{variant}.yaml")
    if not path.is_file():
        raise unknown_name("variant", variant, known_variants())
    recipe = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(path))
    allowed = OmegaConf.to_container(recipe.budget)
    assert isinstance(allowed, dict)
    if precision not in allowed:
        raise SegforgeError(
            f"{path} has no budget for {precision}",
            expected=f"budget.{precision}: the score that may be lost; it has {', '.join(map(str, allowed))}",
        )
    return float(allowed[precision])
