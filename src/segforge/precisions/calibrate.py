"""Which images calibrate, and the range that each tensor takes on them."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from segforge.config.engine import Calibration
from segforge.config.rules import SPLITS
from segforge.datasets.core.images import network_input, read_image
from segforge.datasets.core.index import Index, Sample, load_index, require_disjoint
from segforge.errors import SegforgeError
from segforge.files import read_json, sha256_file
from segforge.passport import Passport
from segforge.terminal import track


def choose_images(passport: Passport, calibration: Calibration) -> dict[str, Any]:
    """The content of `calibration.json`: {dataset, split, images: [{image, sha256}], method, seed}.

    Drawn by seed among the images of training, or taken from `calibration.file`; each hash is of the file as it is now.
    Raises `SegforgeError` when an image is missing or changed, or lies in the scored split under any name.
    """
    index = load_index(passport.dataset)
    if calibration.file:
        listed = read_json(Path(calibration.file), made_by="a quantize stage writes calibration.json")
        rows, split = _listed(listed, calibration.file), str(listed.get("split", ""))
    else:
        rows, split = _drawn(index, passport, calibration)
    made_by = f"python stages/download.py dataset={index.name}"
    for image, digest in ((row["image"], row["sha256"]) for row in rows):
        if not Path(image).is_file():
            raise SegforgeError(f"{image} is missing", hint=made_by)
        if sha256_file(Path(image)) != digest:
            problem = f"{image} has changed since it was listed"
            raise SegforgeError(problem, expected=f"sha256 {digest[:16]}…", hint=made_by)
    scored = [sha256_file(s.image) for s in index.split(passport.task, passport.score_split)]
    require_disjoint([row["sha256"] for row in rows], scored, "calibration images and the scored split")
    how = {"method": calibration.method, "seed": calibration.seed}
    return {"dataset": index.name, "split": split, "images": rows, **how}


def _listed(listed: Any, file: str) -> list[dict[str, str]]:
    try:
        rows = [{"image": str(row["image"]), "sha256": str(row["sha256"])} for row in listed["images"]]
    except (KeyError, TypeError) as error:
        raise SegforgeError(f"{file} is no calibration list", expected='{"images": [{"image", "sha256"}]}') from error
    if not rows:
        raise SegforgeError(f"{file} lists no image", expected="at least one")
    return rows


def _drawn(index: Index, passport: Passport, calibration: Calibration) -> tuple[list[dict[str, str]], str]:
    trained = set(passport.train_images)
    found: list[tuple[str, Sample]] = []
    for split in (name for name in SPLITS if name != passport.score_split):
        samples = index.samples[passport.task].get(split, [])
        found += [(split, sample) for sample in samples if sample.sha256[:16] in trained]
    if not found:
        problem = f"no image of data set {index.name!r} was trained on by {passport.variant}"
        raise SegforgeError(problem, expected="the data set as it was at training", hint="run train again")
    count = min(calibration.images, len(found))
    places = np.random.default_rng(calibration.seed).choice(len(found), count, replace=False)
    picked = [found[place] for place in sorted(places)]
    rows = [{"image": sample.image.as_posix(), "sha256": sample.sha256} for _, sample in picked]
    return rows, "+".join(dict(picked))  # each split once, in the order of SPLITS


def tensor_ranges(
    model: Path, images: Sequence[Path], passport: Passport, calibration: Calibration, operators: Sequence[str]
) -> Any:
    """ONNX Runtime's `TensorsData`: the range of each tensor beside `operators` over `images`, held one at a time."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    method = {known.name.lower(): known for known in CalibrationMethod}[calibration.method]
    options = {"percentile": calibration.percentile, "symmetric": False}
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # the histograms' chatter
        augmented = str(Path(folder, "augmented.onnx"))
        calibrator = create_calibrator(model, operators, augmented, calibrate_method=method, extra_options=options)
        for path in track(images, "calibrate", unit="images"):
            inputs = iter([{"images": network_input([read_image(path)], passport)}, None])  # None ends it
            calibrator.collect_data(SimpleNamespace(get_next=inputs.__next__))
        return calibrator.compute_data()
