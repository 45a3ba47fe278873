"""Inputs for a tool elsewhere, and the score of what it wrote: the same as the engine's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segforge.errors import SegforgeError
from segforge.files import read_json
from segforge.layout import VariantPaths
from segforge.runtimes import onnx_runner
from segforge.scores.predictions import evaluate_predictions, preprocess


def elsewhere(config: Any, inputs: Path, outputs: Path, form: str, kind: str) -> None:
    """Another machine's tool: reads each .bin as `inputs.json` says, and writes its output its own way."""
    listed = json.loads((inputs / "inputs.json").read_text())
    outputs.mkdir()
    with onnx_runner(VariantPaths(config.variant).simplified) as runner:
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
    [("{}_0.bin", "int32"), ("{}_output_0.bin", "int64"), ("{}.bin", "uint8"), ("{}.png", "png"), ("{}_0.npy", "npy")],
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
