"""Inference elsewhere: inputs as raw `.bin` files for another machine's tool, and a score of what it wrote."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segforge.config.engine import EngineConfig
from segforge.datasets.core.images import network_input, read_image, read_label_ids
from segforge.datasets.core.index import Sample
from segforge.errors import SegforgeError, few
from segforge.evaluation import score_outputs, scored_samples
from segforge.files import sha256_file, write_bytes, write_json
from segforge.graph.file import read_passport
from segforge.layout import VariantPaths
from segforge.passport import Array, Passport
from segforge.tasks import task_of
from segforge.terminal import say, track

# How msame, ais_bench and others name the file of an output of the input `name`.
FORMS = ("{name}_{number}", "{name}_output_{number}", "{name}_{number:02d}")
SUFFIXES = (".bin", ".npy", ".png")
TYPES = {1: ("uint8", "uint8"), 2: ("float16", "int16"), 4: ("float32", "int32"), 8: ("float64", "int64")}


def write_inputs(config: EngineConfig) -> None:
    """Write every scored image as the ONNX file takes it, one `<image>.bin` each, into `config.output`.

    A file holds the bytes of one input of batch 1, as the stated type and shape in `inputs.json`, which
    also names the image that each file came from. Raises `SegforgeError` without `output=`.
    """
    if not config.output:
        raise SegforgeError("preprocess needs output=", expected="a folder", hint=f"{_command(config)} output=inputs")
    passport, samples = _scored(config)
    folder = Path(config.output)
    say(f"preprocess: {len(samples)} inputs of {passport.variant} to {folder}/")
    files = []
    named = track(zip(samples, input_names(samples), strict=True), "preprocess", total=len(samples), unit="images")
    for sample, name in named:
        write_bytes(folder / f"{name}.bin", network_input([read_image(sample.image)], passport).tobytes())
        files.append({"file": f"{name}.bin", "image": sample.image.as_posix(), "sha256": sample.sha256})
    about = {
        "variant": passport.variant,
        "onnx_sha256": sha256_file(VariantPaths(config.variant).simplified),
        "dtype": passport.input_spec.dtype,
        "shape": [1, *passport.input_spec.shape],
        "outputs": passport.outputs,
        "files": files,
    }
    write_json(folder / "inputs.json", about)
    say(f"preprocess: score what comes out with: {_command(config, 'evaluate')} predictions=<folder>")


def evaluate_predictions(config: EngineConfig) -> None:
    """Score the outputs in `config.predictions` and write `result.json` there, or into `config.output`.

    For the input `name.bin` the outputs are `name_0.bin`, `name_output_0.bin` or `name.bin` (and `_1` and
    so on for further ones), as raw bytes, `.npy`, or for class ids a grey `.png`. Raises `SegforgeError`
    naming the images without outputs, and files of another size.
    """
    if not config.predictions or not Path(config.predictions).is_dir():
        problem = f"predictions={config.predictions} is no folder"
        raise SegforgeError(problem, expected="the folder with the outputs of each input")
    passport, samples = _scored(config)
    folder = Path(config.predictions)
    names = input_names(samples)
    files = [find_outputs(folder, name, passport) for name in names]
    without = [name for name, found in zip(names, files, strict=True) if not found]
    if without:
        problem = f"{folder} lacks the outputs of {len(without)} of {len(samples)} images: {few(without)}"
        hint = f"{_command(config, 'preprocess')} output=<folder> writes the inputs"
        raise SegforgeError(problem, expected=f"such as {without[0]}_0.bin for {without[0]}.bin", hint=hint)
    twice = [path for path, count in Counter(path for found in files for path in found).items() if count > 1]
    if twice:
        raise SegforgeError(f"{twice[0]} fits two inputs", expected="<input>_0.bin for each")
    rows = (([sample], read_outputs(found, passport)) for sample, found in zip(samples, files, strict=True))
    result = score_outputs(track(rows, "scoring", total=len(samples), unit="images"), passport).result
    target = Path(config.output or folder) / "result.json"
    write_json(target, result_table(result, passport, len(samples)))
    say(f"{passport.variant}: {task_of(passport.task).metric} {result['score']:.4f}; wrote {target}")


def result_table(result: dict[str, Any], passport: Passport, images: int) -> dict[str, Any]:
    """Figures in the form of Ascend's model zoo: a title, and pairs of key and value as text."""
    figures: dict[str, Any] = {"Number of images": images, "Number of classes": len(passport.classes)}
    figures[task_of(passport.task).metric] = result["score"]
    figures |= {key: value for key, value in result.items() if key not in ("score", "per_class")}
    figures |= {f"class {name}": value for name, value in zip(passport.classes, result["per_class"], strict=True)}
    pairs = [{"key": key, "value": "" if value is None else str(value)} for key, value in figures.items()]
    return {"title": "Overall statistical evaluation", "value": pairs}


def input_names(samples: Sequence[Sample]) -> list[str]:
    """A file name for each image: its own, with a number before it where that alone is not unique."""
    stems = [sample.image.stem for sample in samples]
    unique = len(set(stems)) == len(stems)
    return stems if unique else [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]


def find_outputs(folder: Path, name: str, passport: Passport) -> list[Path]:
    """The files of each output of one input, in the graph's order; none where one is missing."""
    found: list[Path] = []
    for number in range(len(passport.outputs)):
        stems = [form.format(name=name, number=number) for form in FORMS]
        stems += [name] if len(passport.outputs) == 1 else []
        paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        found += [path for path in paths if path.is_file()][:1]
    return found if len(found) == len(passport.outputs) else []


def read_outputs(paths: Sequence[Path], passport: Passport) -> dict[str, Array]:
    """The outputs of one image as an engine would give them, with a batch of 1.

    A tool may have widened the types: raw bytes are read as whichever integer or float of that many
    bytes the output's own kind allows. Raises `SegforgeError` for any other size, and for values that the
    output cannot hold.
    """
    outputs = {}
    for path, spec in zip(paths, passport.outputs, strict=True):
        shape, whole = spec["shape"], np.dtype(spec["dtype"]).kind != "f"
        values, what = math.prod(shape), f"{spec['name']} {shape}"
        if path.suffix == ".png":
            array: Array = read_label_ids(path)
        elif path.suffix == ".npy":
            try:
                array = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise SegforgeError(f"{path} cannot be read: {error}", expected="a whole .npy file") from error
        else:
            raw = path.read_bytes()
            width = len(raw) // values
            if width not in TYPES or len(raw) != width * values:
                raise SegforgeError(f"{path} has {len(raw)} bytes", expected=f"{what}, of 1, 2, 4 or 8 bytes each")
            array = np.frombuffer(raw, TYPES[width][whole])
        if array.size != values:
            raise SegforgeError(f"{path} has the shape {list(array.shape)}", expected=what)
        if whole:
            least, most, limits = array.min(), array.max(), np.iinfo(spec["dtype"])
            if not (limits.min <= least and most <= limits.max):
                problem = f"{path} holds values from {least} to {most}"
                raise SegforgeError(problem, expected=f"{spec['dtype']} {spec['name']}")
        outputs[spec["name"]] = array.reshape(1, *shape).astype(spec["dtype"], copy=False)
    return outputs


def _scored(config: EngineConfig) -> tuple[Passport, list[Sample]]:
    paths = VariantPaths(config.variant)
    passport = read_passport(paths.simplified, made_by=paths.command("simplify"))
    return passport, scored_samples(passport)


def _command(config: EngineConfig, stage: str = "preprocess") -> str:
    return f"python stages/{stage}.py variant={config.variant}"
