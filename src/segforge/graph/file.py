"""ONNX files with a passport: read and written."""

from pathlib import Path

import onnx

from segforge.errors import SegforgeError
from segforge.passport import PREFIX, Passport, passport_from


def embed_passport(model: onnx.ModelProto, passport: Passport) -> None:
    """Write `passport` into `model`, replacing what an earlier call wrote and keeping all else."""
    kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith(PREFIX)]
    del model.metadata_props[:]
    for key, value in (*kept, *passport.properties().items()):
        model.metadata_props.add(key=key, value=value)


def passport_in(model: onnx.ModelProto, source: Path) -> Passport:
    """The passport of a loaded model; raises `SegforgeError` naming `source` and what is missing."""
    return passport_from({p.key: p.value for p in model.metadata_props}, source)


def load_onnx(path: Path, *, made_by: str) -> onnx.ModelProto:
    """The ONNX model in `path`; raises `SegforgeError` when it is missing or cannot be parsed."""
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="an ONNX file", hint=made_by)
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own exception types differ between its releases
        raise SegforgeError(f"{path} is no readable ONNX file: {error}", hint=made_by) from error


def load_own(path: Path, variant: str, *, made_by: str) -> tuple[onnx.ModelProto, Passport]:
    """The ONNX model in `path` and its passport; raises `SegforgeError` also where it is of another variant."""
    model = load_onnx(path, made_by=made_by)
    passport = passport_in(model, path)
    passport.require_variant(variant, path, made_by=made_by)
    return model, passport


def read_passport(path: Path, *, made_by: str) -> Passport:
    """The passport of the ONNX file in `path`."""
    return passport_in(load_onnx(path, made_by=made_by), path)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, which `atomic_file` yields in the stages; the same model gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))
