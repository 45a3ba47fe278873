"""Which images calibrate, and the range that each tensor takes on them."""

from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from segforge.config import Calibration
from segforge.datasets.base import SPLITS, Index, Sample, load_index, read_image, require_disjoint
from segforge.datasets.preprocess import network_input
from segforge.errors import SegforgeError, unknown_name
from segforge.files import read_json, sha256_file
from segforge.onnx.metadata import OnnxMetadata
from segforge.progress import track
from segforge.runtimes.base import Array

METHODS = ("minmax", "percentile", "entropy")


def choose_images(metadata: OnnxMetadata, calibration: Calibration) -> dict[str, Any]:
    """The content of `calibration.json`: {dataset, split, images: [{image, sha256}], method, seed}.

    The images are drawn by seed among those that the network was trained on, or taken from
    `calibration.file`. Every hash is of the file as it lies there now. Raises `SegforgeError` when
    an image is missing or changed, or lies in the scored split under any name.
    """
    if calibration.method not in METHODS:
        raise unknown_name("precision.calibration.method", calibration.method, METHODS)
    index = load_index(metadata.dataset)
    if calibration.file:
        listed = read_json(Path(calibration.file), made_by="a quantize stage writes calibration.json")
        rows, split = _listed(listed, calibration.file), str(listed.get("split", ""))
    else:
        rows, split = _drawn(index, metadata, calibration)
    for row in rows:
        if not Path(row["image"]).is_file():
            raise SegforgeError(f"{row['image']} is missing", hint=f"python stages/download.py dataset={index.name}")
        if sha256_file(Path(row["image"])) != row["sha256"]:
            raise SegforgeError(
                f"{row['image']} has changed since it was listed",
                expected=f"sha256 {row['sha256'][:16]}…",
                hint=f"python stages/download.py dataset={index.name}",
            )
    scored = [sha256_file(s.image) for s in index.split(metadata.task, metadata.score_split)]
    require_disjoint([row["sha256"] for row in rows], scored, "calibration images and the scored split")
    return {
        "dataset": index.name,
        "split": split,
        "images": rows,
        "method": calibration.method,
        "seed": calibration.seed,
    }


def _listed(listed: Any, file: str) -> list[dict[str, str]]:
    try:
        rows = [{"image": str(row["image"]), "sha256": str(row["sha256"])} for row in listed["images"]]
    except (KeyError, TypeError) as error:
        raise SegforgeError(f"{file} is no calibration list", expected='{"images": [{"image", "sha256"}]}') from error
    if not rows:
        raise SegforgeError(f"{file} lists no image", expected="at least one")
    return rows


def _drawn(index: Index, metadata: OnnxMetadata, calibration: Calibration) -> tuple[list[dict[str, str]], str]:
    trained = set(metadata.train_images)
    found: list[tuple[str, Sample]] = []
    for split in SPLITS:
        if split != metadata.score_split:
            samples = index.samples[metadata.task].get(split, [])
            found += [(split, sample) for sample in samples if sample.sha256[:16] in trained]
    if not found:
        raise SegforgeError(
            f"no image of data set {index.name!r} was trained on by {metadata.variant}",
            expected="the data set as it was at training",
            hint="run train again",
        )
    count = min(calibration.images, len(found))
    picked = sorted(np.random.default_rng(calibration.seed).choice(len(found), count, replace=False))
    rows = [{"image": found[i][1].image.as_posix(), "sha256": found[i][1].sha256} for i in picked]
    return rows, "+".join(split for split in SPLITS if split in {found[i][0] for i in picked})


def tensor_ranges(
    model: Path, images: Sequence[Path], metadata: OnnxMetadata, calibration: Calibration, operators: Sequence[str]
) -> Any:
    """ONNX Runtime's `TensorsData`: the range of each tensor beside `operators`, over `images`.

    One image is held at a time, whatever their number: the calibrators merge after each.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[calibration.method]
    options = {"percentile": calibration.percentile, "symmetric": False}
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # the histograms' chatter
        calibrator = create_calibrator(
            model, operators, str(Path(folder, "augmented.onnx")), calibrate_method=method, extra_options=options
        )
        for path in track(images, "calibrate", unit="images"):
            calibrator.collect_data(_Reader([{"images": network_input([read_image(path)], metadata)}]))
        return calibrator.compute_data()


class _Reader:
    """ONNX Runtime's `CalibrationDataReader` over a few inputs."""

    def __init__(self, inputs: Iterable[dict[str, Array]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._inputs, None)
