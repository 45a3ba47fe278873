"""The engine half: one variant on one target in one precision; the primary configs `engine` and `machine`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from segforge.config.rules import check_fields, choice, known_names, must, one_of, ruled
from segforge.errors import SegforgeError
from segforge.layout import EnginePaths

NUMERIC_TYPES = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")  # that products can be computed in


@dataclass
class Recognise:
    """What hardware must be to be this device; empty or null: anything."""

    name: str = ""  # whole words of the name that its driver, or the system, gives
    sm: str = ""  # compute capability, such as 9.0
    uuid: str | None = None  # of one card among several alike


@dataclass
class Device:
    """Hardware facts, and how the hardware is recognised."""

    name: str = MISSING
    kind: str = choice("cpu", "gpu", "npu")
    precisions: list[str] = MISSING  # of NUMERIC_TYPES: what the hardware computes in
    recognise: Recognise = field(default_factory=Recognise)
    note: str = ""


@dataclass
class MachineConfig:
    """probe, ceilings and report."""

    device: Device = field(default_factory=Device)  # ceilings: the one that is measured
    ceilings_s: float = 0.5  # per measured ceiling
    title: str = "Segforge"

    def check(self) -> None:
        """Raise `SegforgeError` for an unknown kind of device."""
        check_fields(self)


@dataclass
class Calibration:
    """Which images give the ranges of a quantised graph, and how."""

    images: int = ruled("1 image or more", lambda images: images >= 1)
    method: str = choice("minmax", "percentile", "entropy")
    percentile: float = ruled("above 0 and up to 100", lambda percentile: 0 < percentile <= 100, 99.99)
    seed: int = 0
    file: str | None = None  # a list in the form of calibration.json, instead of a draw by seed


@dataclass
class Roofline:
    """What the limit of an engine is made of, beside the rate of its products."""

    float_ceiling: str = MISSING  # the measured rate that what is not quantised is held against
    float_bytes: int = MISSING  # of a value that is not quantised


@dataclass
class Mark:
    """How the report shows a precision."""

    shape: str = choice("circle", "square", "diamond", "triangle")  # of its points
    dash: str = ""  # of its lines, as SVG's stroke-dasharray


@dataclass
class Precision:
    """How engines compute: a row of the table that conf/precision/ is."""

    name: str = MISSING
    arithmetic: str = choice(*NUMERIC_TYPES)  # of its products: device and runtime must have it, a ceiling holds it
    typing: str = MISSING  # how the graph gets its types: a name of precisions.TYPINGS
    budget: float = ruled("0 or more", lambda budget: budget >= 0)  # score that may be lost; a recipe may say another
    # Least share of equal classes between two batch sizes of one engine.
    agreement: float = ruled("a share, 0 to 1", lambda agreement: 0 <= agreement <= 1)
    limit: Roofline = field(default_factory=Roofline)
    mark: Mark = field(default_factory=Mark)
    calibration: Calibration | None = MISSING
    per_channel: bool = MISSING
    skip: list[str] = MISSING  # ONNX operators that stay in float

    def check(self) -> None:
        """Raise `SegforgeError` where the row is called by another type, or does not say how its own comes about."""
        plain = self.name == self.arithmetic or self.name not in NUMERIC_TYPES
        must(plain, f"precision={self.name} with precision.arithmetic={self.arithmetic}", "a row of the type it names")
        fits = self.typing != "qdq" or self.calibration is not None
        must(fits, f"precision={self.name} without precision.calibration", "how its ranges are found")


@dataclass
class Target:
    """A device with a runtime, and what the pair can do."""

    name: str = MISSING
    device: Device = field(default_factory=Device)
    runtime: str = MISSING  # a name of runtimes.RUNTIMES
    precisions: list[str] = MISSING
    refused: dict[str, str] = field(default_factory=dict)  # precision -> why it cannot be had here
    activation: str = choice("uint8", "int8", default="uint8")  # type of Q/DQ activations
    argmax: str = choice("planes", "channels_last", default="planes")  # what resize and argmax of an int8 graph read
    float_stem: bool = False  # leave a convolution larger than 3x3 that reads the images out of int8
    threads: int = ruled("0 for every core of this process, or more", lambda threads: threads >= 0, 0)
    options: dict[str, Any] = field(default_factory=dict)  # of the runtime itself

    def check(self, precision: Precision) -> None:
        """Raise `SegforgeError` where the pair cannot run `precision`; says why, and what it can."""
        name, arithmetic, device = precision.name, precision.arithmetic, self.device
        works = [p for p in self.precisions if p != name]
        if name in self.precisions and arithmetic in device.precisions:
            return
        if arithmetic not in device.precisions:
            reason = f"{device.name} has no {arithmetic} arithmetic" + (f" ({device.note})" if device.note else "")
        else:
            reason = self.refused.get(name, f"{self.runtime} has no {name} path there")
        raise SegforgeError(
            f"target {self.name!r} cannot run {name}: {reason}",
            expected=f"one of {', '.join(works)} on this target",
            hint=f"precision={{{','.join(works)}}} target={self.name}",
        )


@dataclass
class Benchmark:
    """How long and at which batches an engine is timed."""

    name: str = MISSING
    batches: list[int] = ruled("batches of 1 or more", lambda batches: bool(batches) and min(batches) >= 1)
    warmup_s: float = MISSING  # at least this long, and until two windows agree
    warmup_max_s: float = MISSING
    measure_s: float = MISSING  # at least this long per quantity and batch
    min_samples: int = ruled("1 or more", lambda samples: samples >= 1)
    streams: int = ruled("1 or more", lambda streams: streams >= 1)  # concurrent requests for throughput
    images: int = ruled("1 or more", lambda images: images >= 1)  # real images that are cycled through
    max_cov: float = MISSING  # coefficient of variation above which a figure is not valid


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

    @property
    def paths(self) -> EnginePaths:
        """Where the engine and its figures live."""
        return EnginePaths(self.variant, self.target.name, self.precision.name)

    def check(self) -> None:
        """Raise `SegforgeError` where target and precision cannot work together, or the variant is none."""
        check_fields(self)
        self.precision.check()
        self.target.check(self.precision)
        known = known_names("recipe")
        problem = f"variant {self.variant!r} is no <model>-<backbone>-<dataset>"
        must(self.variant.count("-") == 2, problem, f"one of {', '.join(known)}")
        one_of(known, "variant", self.variant)
