"""What an ONNX file says about itself, so that the engine half needs nothing else."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import onnx

from segforge.errors import SegforgeError

PREFIX = "segforge."
PANOPTIC_OUTPUTS = ("masks", "scores", "classes", "stuff_ids")  # as `architectures.panopticfcn` describes them


@dataclass(frozen=True)
class OnnxMetadata:
    """Everything about a network that travels with its graph (ONNX `metadata_props`, JSON values)."""

    variant: str
    model: str
    architecture: str  # the file in architectures/ that builds the model
    backbone: str
    options: dict[str, Any]  # keyword arguments of the architecture's builder
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


def embed_metadata(model: onnx.ModelProto, metadata: OnnxMetadata) -> None:
    """Write `metadata` into `model`, replacing what an earlier call wrote and keeping all else."""
    kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith(PREFIX)]
    del model.metadata_props[:]
    for key, value in asdict(metadata).items():
        kept.append((PREFIX + key, json.dumps(value)))
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)


def metadata_of(model: onnx.ModelProto, source: Path) -> OnnxMetadata:
    """The metadata of a loaded model; raises `SegforgeError` naming `source` and what is missing."""
    found = {p.key.removeprefix(PREFIX): json.loads(p.value) for p in model.metadata_props if p.key.startswith(PREFIX)}
    wanted = [f.name for f in fields(OnnxMetadata)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SegforgeError(
            f"{source} lacks the metadata {', '.join(missing)}",
            expected="an ONNX file written by stages/export.py",
            hint="python stages/export.py model=<model> backbone=<backbone> dataset=<dataset>",
        )
    return OnnxMetadata(**{name: found[name] for name in wanted})


def load_onnx(path: Path, *, made_by: str) -> onnx.ModelProto:
    """The ONNX model in `path`; raises `SegforgeError` when it is missing or cannot be parsed."""
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="an ONNX file", hint=made_by)
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own exception types differ between its releases
        raise SegforgeError(f"{path} is no readable ONNX file: {error}", hint=made_by) from error


def read_metadata(path: Path, *, made_by: str) -> OnnxMetadata:
    """The metadata of the ONNX file in `path`."""
    return metadata_of(load_onnx(path, made_by=made_by), path)


def require_variant(metadata: OnnxMetadata, variant: str, source: Path, *, made_by: str) -> None:
    """Raise `SegforgeError` unless the ONNX file `source`, whose metadata this is, is of `variant`."""
    if metadata.variant != variant:
        raise SegforgeError(
            f"{source} is of variant {metadata.variant!r}", expected=f"variant {variant!r}", hint=made_by
        )


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`; the same model gives the same bytes.

    Not whole or absent by itself: stages give it the name that `atomic_file` yields, and check the file
    before it gets its own.
    """
    path.write_bytes(model.SerializeToString(deterministic=True))
