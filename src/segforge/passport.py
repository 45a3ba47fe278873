"""What an ONNX file says about itself, so that the engine half needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segforge.errors import SegforgeError

Array = NDArray[Any]
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` is without the batch, which runs from `batch_min` to `batch_max`."""

    name: str
    dtype: str  # numpy's name, such as float32 or uint8
    shape: tuple[int, ...]
    batch_min: int
    batch_max: int


PREFIX = "segforge."


@dataclass(frozen=True)
class Passport:
    """Everything about a network that travels with its graph (ONNX `metadata_props`, JSON values)."""

    variant: str
    model: str
    family: str  # the file in architectures/ that builds the model
    backbone: str
    options: dict[str, Any]  # keyword arguments of the family's builder
    dataset: str
    task: str  # semantic, panoptic or classification
    classes: list[str]
    things: list[int]  # classes that are counted; panoptic only
    colours: list[list[int]]  # RGB per class; empty for classification
    void: int
    void_rule: str  # of mIoU: ignore or wrong
    score_split: str
    height: int  # network input
    width: int
    output_height: int  # of the class ids that are scored; 0 for classification
    output_width: int
    colour_order: str  # rgb or bgr
    mean: list[float]  # of values in 0..255, in colour_order
    std: list[float]
    input_layout: str  # nchw_float32 (host normalises) or nhwc_uint8 (graph normalises)
    tail: str  # argmax or logits
    resize: str  # where logits are brought to the output's size: graph or host
    outputs: list[dict[str, Any]]  # name, dtype (numpy's name) and shape without the batch, in the graph's order
    batch_min: int
    batch_max: int
    opset: int
    checkpoint_sha256: str  # of best.safetensors
    train_images: list[str]  # first 16 hex digits of each training image's SHA-256, sorted

    @property
    def input_spec(self) -> TensorSpec:
        """The network's input, `images`."""
        if self.input_layout == "nhwc_uint8":
            return TensorSpec("images", "uint8", (self.height, self.width, 3), self.batch_min, self.batch_max)
        return TensorSpec("images", "float32", (3, self.height, self.width), self.batch_min, self.batch_max)

    @property
    def output_specs(self) -> list[TensorSpec]:
        """The outputs, in the graph's order."""
        bounds = self.batch_min, self.batch_max
        return [TensorSpec(row["name"], row["dtype"], tuple(row["shape"]), *bounds) for row in self.outputs]

    def require_variant(self, variant: str, source: Path, *, made_by: str) -> None:
        """Raise `SegforgeError` unless the ONNX file `source`, whose passport this is, is of `variant`."""
        if self.variant != variant:
            problem = f"{source} is of variant {self.variant!r}"
            raise SegforgeError(problem, expected=f"variant {variant!r}", hint=made_by)

    def require_batches(self, batches: Sequence[int]) -> None:
        """Raise `SegforgeError` where a batch that is to be scored or timed is outside the engine's range."""
        outside = [batch for batch in batches if not self.batch_min <= batch <= self.batch_max]
        if outside:
            problem = f"benchmark.batches {outside} are outside the engine's range"
            hint = f"benchmark.batches=[{self.batch_min}], or export with another export.batch_max"
            raise SegforgeError(problem, expected=f"batches from {self.batch_min} to {self.batch_max}", hint=hint)

    def properties(self) -> dict[str, str]:
        """The passport as properties of an ONNX file: names with `PREFIX`, JSON values."""
        return {PREFIX + key: json.dumps(value) for key, value in asdict(self).items()}


def passport_from(properties: Mapping[str, str], source: Path) -> Passport:
    """The passport among the properties of the ONNX file `source`; raises `SegforgeError` naming what is missing."""
    found = {key.removeprefix(PREFIX): json.loads(value) for key, value in properties.items() if key.startswith(PREFIX)}
    wanted = [f.name for f in fields(Passport)]
    missing = [name for name in wanted if name not in found]
    if missing:
        problem, expected = f"{source} lacks {', '.join(missing)} in its passport", "an ONNX file of stages/export.py"
        hint = "python stages/export.py model=<model> backbone=<backbone> dataset=<dataset>"
        raise SegforgeError(problem, expected=expected, hint=hint)
    return Passport(**{name: found[name] for name in wanted})
