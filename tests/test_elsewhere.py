"""Inputs for a tool elsewhere, and the score of what it wrote: the same as the engine's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_world import World

from segforge.datasets.core.index import Sample, load_index
from segforge.elsewhere import evaluate_predictions, input_names
from segforge.errors import SegforgeError
from segforge.files import read_json
from segforge.layout import VariantPaths
from segforge.runtimes.core.onnx import OnnxRunner
from stages.preprocess import preprocess


@pytest.fixture
def world(project, composed):
    return World(composed)


def elsewhere(config: Any, inputs: Path, outputs: Path, form: str, kind: str) -> None:
    """Another machine's tool: reads each .bin as `inputs.json` says, and writes its output its own way."""
    listed = json.loads((inputs / "inputs.json").read_text())
    outputs.mkdir()
    with OnnxRunner(VariantPaths(config.variant).simplified) as runner:
        for row in listed["files"]:
            raw = np.fromfile(inputs / row["file"], listed["dtype"]).reshape(listed["shape"])
            ids = runner.run({"images": raw})["ids"][0]
            path = outputs / form.format(Path(row["file"]).stem)
            if kind == "png":
                Image.fromarray(ids).save(path)
            elif kind == "npy":
                np.save(path, ids.astype(np.int64))
            else:
                ids.astype(kind).tofile(path)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("{}_0.bin", "int16"),
        ("{}_0.bin", "uint16"),
        ("{}_0.bin", "int32"),
        ("{}_output_0.bin", "int64"),
        ("{}.bin", "uint8"),
        ("{}.png", "png"),
        ("{}_0.npy", "npy"),
    ],
)
def test_outputs_from_elsewhere_score_what_the_graph_scores(world, tmp_path, form, kind):
    config = world.config("fp32", "output=inputs")
    preprocess(config)
    elsewhere(config, Path("inputs"), Path("outputs"), form, kind)
    evaluate_predictions(world.config("fp32", "predictions=outputs"))
    found = read_json(Path("outputs/result.json"), made_by="")
    values = {pair["key"]: pair["value"] for pair in found["value"]}
    assert float(values["miou"]) == pytest.approx(world.checkpoint)
    assert values["Number of images"] == "16"
    assert "class water" in values


def test_missing_and_torn_outputs_are_named(world):
    config = world.config("fp32", "output=inputs")
    preprocess(config)
    elsewhere(config, Path("inputs"), Path("outputs"), "{}_0.bin", "int32")
    Path("outputs/03_0.bin").unlink()
    with pytest.raises(SegforgeError, match=r"lacks the outputs of 1 of 16 images: 03"):
        evaluate_predictions(world.config("fp32", "predictions=outputs"))
    Path("outputs/03_0.bin").write_bytes(b"\0" * 100)
    with pytest.raises(SegforgeError, match=r"03_0\.bin has 100 bytes"):
        evaluate_predictions(world.config("fp32", "predictions=outputs"))
    assert not Path("outputs/result.json").exists()
    with pytest.raises(SegforgeError, match="no folder"):
        evaluate_predictions(world.config("fp32", "predictions=nowhere"))


def test_the_wrong_answers_score_less(world):
    config = world.config("fp32", "output=inputs")
    preprocess(config)
    elsewhere(config, Path("inputs"), Path("outputs"), "{}_0.bin", "int32")
    files = sorted(Path("outputs").glob("*.bin"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)  # each image gets its neighbour's
    evaluate_predictions(world.config("fp32", "predictions=outputs", "output=scored"))
    found = read_json(Path("scored/result.json"), made_by="")
    assert float({p["key"]: p["value"] for p in found["value"]}["miou"]) < world.checkpoint - 0.2


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_numbers_that_are_no_ids_are_refused(world, kind):
    """Raw bytes do not say what they are: as integers, these are far beyond any id."""
    preprocess(world.config("fp32", "output=inputs"))
    elsewhere(world.config("fp32"), Path("inputs"), Path("outputs"), "{}_0.bin", kind)
    with pytest.raises(SegforgeError, match=r"holds values from 0 to \d+"):
        evaluate_predictions(world.config("fp32", "predictions=outputs"))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00"])
def test_a_torn_npy_is_named(world, content):
    preprocess(world.config("fp32", "output=inputs"))
    elsewhere(world.config("fp32"), Path("inputs"), Path("outputs"), "{}_0.npy", "npy")
    Path("outputs/03_0.npy").write_bytes(content)
    with pytest.raises(SegforgeError, match=r"03_0\.npy cannot be read"):
        evaluate_predictions(world.config("fp32", "predictions=outputs"))


def test_equal_names_get_inputs_of_their_own():
    samples = [Sample(Path("data/x", name), 0, "") for name in ("a_b/c.png", "a/b_c.png", "a/c.jpg", "a/c.png")]
    assert len(set(input_names(samples))) == 4


def test_one_file_for_two_inputs_is_refused(world):
    preprocess(world.config("fp32", "output=inputs"))
    elsewhere(world.config("fp32"), Path("inputs"), Path("outputs"), "{}.bin", "uint8")
    first, second = sorted(sample.image for sample in load_index("shapes").split("semantic", "test"))[:2]
    index = Path("data/shapes/index.json")
    renamed = second.with_name(f"{first.stem}_0{second.suffix}")
    second.rename(renamed)
    index.write_text(index.read_text().replace(second.name, renamed.name))
    Path("outputs", f"{second.stem}.bin").rename(Path("outputs", f"{renamed.stem}.bin"))
    with pytest.raises(SegforgeError, match="fits two inputs"):
        evaluate_predictions(world.config("fp32", "predictions=outputs"))


def test_an_empty_folder_name_is_refused(stage, world):
    done = stage("evaluate", f"variant={world.passport.variant}", "predictions=")
    assert done.returncode == 1 and "predictions=" in done.stderr and "Traceback" not in done.stderr
