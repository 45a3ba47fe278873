"""Inference elsewhere: inputs as raw `.bin` files for another machine's tool, and a score of what it wrote."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segforge.config import METRIC_OF_TASK, EngineConfig
from segforge.datasets.base import Sample, read_image, read_label_ids
from segforge.datasets.preprocess import network_input
from segforge.errors import SegforgeError
from segforge.files import sha256_file, write_bytes, write_json
from segforge.layout import VariantPaths
from segforge.onnx.metadata import OnnxMetadata, read_metadata
from segforge.progress import say, track
from segforge.runtimes.base import Array
from segforge.scores.decode import Outputs
from segforge.scores.evaluate import score_outputs, scored_samples

# How msame, ais_bench and others name the file of an output of the input `name`.
FORMS = ("{name}_{number}", "{name}_output_{number}", "{name}_{number:02d}")
SUFFIXES = (".bin", ".npy", ".png")
TYPES = {1: ("uint8", "uint8"), 2: ("float16", "int16"), 4: ("float32", "int32"), 8: ("float64", "int64")}
SHOWN = 5


def preprocess(config: EngineConfig) -> None:
    """Write every scored image as the ONNX file takes it, one `<image>.bin` each, into `config.output`.

    A file holds the bytes of one input of batch 1, as the stated type and shape in `inputs.json`, which
    also names the image that each file came from. Raises `SegforgeError` without `output=`.
    """
    if not config.output:
        raise SegforgeError("preprocess needs output=", expected="a folder", hint=f"{_command(config)} output=inputs")
    metadata, samples = _scored(config)
    folder = Path(config.output)
    names = input_names(samples)
    say(f"preprocess: {len(samples)} inputs of {metadata.variant} to {folder}/")
    shape: list[int] = []
    for sample, name in track(zip(samples, names, strict=True), "preprocess", total=len(samples), unit="images"):
        array = network_input([read_image(sample.image)], metadata)
        shape = list(array.shape)
        write_bytes(folder / f"{name}.bin", array.tobytes())
    write_json(
        folder / "inputs.json",
        {
            "variant": metadata.variant,
            "onnx_sha256": sha256_file(VariantPaths(config.variant).simplified),
            "dtype": "uint8" if metadata.input_layout == "nhwc_uint8" else "float32",
            "shape": shape,
            "outputs": metadata.outputs,
            "files": [
                {"file": f"{name}.bin", "image": sample.image.as_posix(), "sha256": sample.sha256}
                for sample, name in zip(samples, names, strict=True)
            ],
        },
    )
    say(f"preprocess: score what comes out with: {_command(config, 'evaluate')} predictions=<folder>")


def evaluate_predictions(config: EngineConfig) -> None:
    """Score the outputs in `config.predictions` and write `result.json` there, or into `config.output`.

    For the input `name.bin` the outputs are `name_0.bin`, `name_output_0.bin` or `name.bin` (and `_1` and
    so on for further ones), as raw bytes, `.npy`, or for class ids a grey `.png`. Raises `SegforgeError`
    naming the images without outputs, and files of another size.
    """
    if not config.predictions:
        raise SegforgeError("predictions= names nothing", expected="the folder with the outputs of each input")
    metadata, samples = _scored(config)
    folder = Path(config.predictions)
    if not folder.is_dir():
        raise SegforgeError(f"{folder} is no folder", expected="the folder with the outputs of each input")
    names = input_names(samples)
    files = [find_outputs(folder, name, metadata) for name in names]
    without = [name for name, found in zip(names, files, strict=True) if found is None]
    if without:
        raise SegforgeError(
            f"{folder} lacks the outputs of {len(without)} of {len(samples)} images: {', '.join(without[:SHOWN])}",
            expected=f"such as {FORMS[0].format(name=without[0], number=0)}.bin for {without[0]}.bin",
            hint=f"{_command(config, 'preprocess')} output=<folder> writes the inputs",
        )
    used = [path for found in files for path in found or ()]
    if len(set(used)) < len(used):
        twice = next(path for path in used if used.count(path) > 1)
        raise SegforgeError(
            f"{twice} fits two inputs", expected=f"{FORMS[0].format(name='<input>', number=0)}.bin for each"
        )

    def rows() -> Iterator[tuple[Sequence[Sample], Outputs]]:
        for sample, found in zip(samples, files, strict=True):
            yield [sample], read_outputs(found or [], metadata)

    result = score_outputs(track(rows(), "scoring", total=len(samples), unit="images"), metadata).result
    target = Path(config.output or folder) / "result.json"
    write_json(target, result_table(result, metadata, len(samples)))
    say(f"{metadata.variant}: {METRIC_OF_TASK[metadata.task]} {result['score']:.4f}; wrote {target}")


def result_table(result: dict[str, Any], metadata: OnnxMetadata, images: int) -> dict[str, Any]:
    """Figures in the form of Ascend's model zoo: a title, and pairs of key and value as text."""
    pairs: list[tuple[str, Any]] = [("Number of images", images), ("Number of classes", len(metadata.classes))]
    pairs.append((METRIC_OF_TASK[metadata.task], result["score"]))
    pairs += [(key, value) for key, value in result.items() if key not in ("score", "per_class")]
    pairs += [(f"class {name}", value) for name, value in zip(metadata.classes, result["per_class"], strict=True)]
    return {
        "title": "Overall statistical evaluation",
        "value": [{"key": key, "value": "" if value is None else str(value)} for key, value in pairs],
    }


def input_names(samples: Sequence[Sample]) -> list[str]:
    """A file name for each image: its own, with a number before it where that alone is not unique."""
    stems = [sample.image.stem for sample in samples]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]


def find_outputs(folder: Path, name: str, metadata: OnnxMetadata) -> list[Path] | None:
    """The files of each output of one input, in the graph's order; None where one is missing."""
    found = []
    for number in range(len(metadata.outputs)):
        stems = [form.format(name=name, number=number) for form in FORMS]
        if len(metadata.outputs) == 1:
            stems.append(name)
        paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found


def read_outputs(paths: Sequence[Path], metadata: OnnxMetadata) -> dict[str, Array]:
    """The outputs of one image as an engine would give them, with a batch of 1.

    A tool may have widened the types: raw bytes are read as whichever integer or float of that many
    bytes the output's own kind allows. Raises `SegforgeError` for any other size, and for values that the
    output cannot hold.
    """
    outputs = {}
    for path, spec in zip(paths, metadata.outputs, strict=True):
        shape, kind = tuple(spec["shape"]), np.dtype(spec["dtype"]).kind
        if path.suffix == ".png":
            array: Array = read_label_ids(path)
        elif path.suffix == ".npy":
            try:
                array = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise SegforgeError(f"{path} cannot be read: {error}", expected="a whole .npy file") from error
        else:
            raw = path.read_bytes()
            width = len(raw) // int(np.prod(shape))
            if width not in TYPES or len(raw) != width * int(np.prod(shape)):
                raise SegforgeError(
                    f"{path} has {len(raw)} bytes", expected=f"{spec['name']} {list(shape)}, of 1, 2, 4 or 8 bytes each"
                )
            array = np.frombuffer(raw, TYPES[width][kind != "f"])
        if array.size != int(np.prod(shape)):
            raise SegforgeError(f"{path} has the shape {list(array.shape)}", expected=f"{spec['name']} {list(shape)}")
        if kind != "f":
            least, most, limits = array.min(), array.max(), np.iinfo(spec["dtype"])
            if not (limits.min <= least and most <= limits.max):
                raise SegforgeError(
                    f"{path} holds values from {least} to {most}", expected=f"{spec['dtype']} {spec['name']}"
                )
        outputs[spec["name"]] = array.reshape(1, *shape).astype(spec["dtype"], copy=False)
    return outputs


def _scored(config: EngineConfig) -> tuple[OnnxMetadata, list[Sample]]:
    paths = VariantPaths(config.variant)
    metadata = read_metadata(paths.simplified, made_by=paths.command("simplify"))
    return metadata, scored_samples(metadata)


def _command(config: EngineConfig, stage: str = "preprocess") -> str:
    return f"python stages/{stage}.py variant={config.variant}"
