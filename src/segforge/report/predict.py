"""Any engine on anyone's images: class id maps with overlays, or a table of classes."""

import glob
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segforge.config import EngineConfig
from segforge.datasets.base import read_image
from segforge.datasets.panoptic import Prediction, describe_segments, resized, semantic_of, write_segment_ids
from segforge.datasets.preprocess import resize_ids
from segforge.errors import SegforgeError
from segforge.files import atomic_file, write_bytes, write_csv, write_json
from segforge.onnx.metadata import OnnxMetadata
from segforge.progress import say, track
from segforge.report.overlay import jpeg, overlay, palette
from segforge.runtimes.build import engine_metadata, open_engine
from segforge.scores.decode import class_ids, segments_of
from segforge.scores.evaluate import infer, prefetch

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
HINT = "python stages/predict.py variant=… target=… precision=… input=<file, folder or glob> output=<folder>"


def predict(config: EngineConfig) -> None:
    """Run an engine over `config.input` and write to `config.output`.

    Semantic: `<stem>.png` (grey PNG of class ids, of the image's own size) and `<stem>-overlay.jpg`.
    Panoptic: a PNG of segment ids in COCO's format in its place, and panoptic.json beside them all.
    Classification: predictions.csv with image, class and probability. Every image is decoded once
    before the first is run: one that is broken stops the work before anything is written. Raises
    `SegforgeError` for that, for no files, for two files of one stem, and for outputs that would
    overwrite inputs.
    """
    if not config.input or not config.output:
        raise SegforgeError("predict needs input= and output=", expected="images to read and a folder", hint=HINT)
    files, output = find_images(config.input), Path(config.output)
    metadata = engine_metadata(config)
    if output.exists() and not output.is_dir():
        raise SegforgeError(f"{output} is a file", expected="a folder, which need not exist yet")
    if metadata.task != "classification":
        _check_names(files, output)
    with open_engine(config) as runner:
        _check_images(files)
        batch = min(metadata.batch_max, max(metadata.batch_min, len(files)))
        say(f"{len(files)} images at batch {batch} through {config.target.name} {config.precision.name} to {output}/")
        start = time.monotonic()
        rows: list[dict[str, object]] = []
        table = palette(metadata.colours, len(metadata.classes))
        parts = track(infer(runner, metadata, files, read_image, batch), "predict", total=-(-len(files) // batch))
        for part, images, raw in parts:
            if metadata.task == "classification":
                rows += _classify(part, raw["logits"], metadata)
            elif metadata.task == "panoptic":
                for path, image, found in zip(part, images, segments_of(raw, metadata), strict=True):
                    rows.append(_save_segments(path, image, found, output, table, metadata))
            else:
                for path, image, ids in zip(part, images, class_ids(raw, metadata), strict=True):
                    own = resize_ids(ids, *image.shape[:2])
                    with atomic_file(output / f"{path.stem}.png") as temporary:
                        Image.fromarray(own).save(temporary, "PNG")
                    drawn = overlay(image, own, table, len(metadata.classes))
                    write_bytes(output / f"{path.stem}-overlay.jpg", jpeg(drawn))
        if metadata.task == "classification":
            write_csv(output / "predictions.csv", ["image", "class", "probability"], rows)
        elif metadata.task == "panoptic":
            write_json(output / "panoptic.json", {"annotations": rows, "categories": _categories(metadata)})
        took = time.monotonic() - start
    say(f"wrote {len(files)} predictions to {output}/, {len(files) / took:.1f} images per second with files")


def find_images(given: str) -> list[Path]:
    """The files that a file name, a folder (its images, not its subfolders) or a glob stands for, sorted."""
    path = Path(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    else:
        found = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = sorted(p for p in map(Path, found) if p.is_file())
    if not files:
        what = f"the folder {given} holds no images" if path.is_dir() else f"no file matches {given!r}"
        raise SegforgeError(what, expected=f"a file, a folder with {' '.join(SUFFIXES)}, or a quoted glob", hint=HINT)
    return files


def _check_names(files: Sequence[Path], output: Path) -> None:
    """Raise `SegforgeError` where an output would overwrite another output or an input."""
    named: dict[str, Path] = {}
    inputs = {path.resolve() for path in files}
    for path in files:
        for name in (f"{path.stem}.png", f"{path.stem}-overlay.jpg"):
            if name in named:
                raise SegforgeError(f"{named[name]} and {path} would both write {name}", expected="one name each")
            named[name] = path
            if (output / name).resolve() in inputs:
                raise SegforgeError(
                    f"output {output / name} would overwrite an input", expected="another folder", hint=HINT
                )


def _check_images(files: Sequence[Path]) -> None:
    def problem(path: Path) -> str:
        try:
            read_image(path)
        except SegforgeError as error:
            return str(error).splitlines()[0]
        return ""

    found = track(prefetch(files, problem, ahead=4), "checking images", total=len(files), unit="images")
    broken = [text for text in found if text]
    if broken:
        shown = "\n  ".join(broken[:5]) + (f"\n  and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise SegforgeError(
            f"{len(broken)} of {len(files)} files are no readable images; nothing was written\n  {shown}",
            expected="images that decode",
            hint="take these files out, then the same command",
        )


def _save_segments(
    path: Path,
    image: NDArray[np.uint8],
    found: Prediction,
    output: Path,
    table: NDArray[np.uint8],
    metadata: OnnxMetadata,
) -> dict[str, object]:
    """Write the PNG and the overlay of one image; its row of COCO's panoptic JSON."""
    ids, classes = resized(found, *image.shape[:2])
    with atomic_file(output / f"{path.stem}.png") as temporary:
        write_segment_ids(temporary, ids)
    # Borders follow the segments, colours their classes.
    drawn = overlay(image, semantic_of((ids, classes)), table, len(metadata.classes), edges=ids)
    write_bytes(output / f"{path.stem}-overlay.jpg", jpeg(drawn))
    return {"image": path.name, "file_name": f"{path.stem}.png", "segments_info": describe_segments(ids, classes)}


def _categories(metadata: OnnxMetadata) -> list[dict[str, object]]:
    return [
        {"id": index, "name": name, "isthing": int(index in metadata.things)}
        for index, name in enumerate(metadata.classes)
    ]


def _classify(files: Sequence[Path], logits: NDArray[np.float32], metadata: OnnxMetadata) -> list[dict[str, object]]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [
        {"image": str(path), "class": metadata.classes[best], "probability": f"{share[best]:.4f}"}
        for path, share, best in zip(files, shares, shares.argmax(axis=1), strict=True)
    ]
