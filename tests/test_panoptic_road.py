"""A panoptic network from a made data set to a scored int8 engine and to predictions, small but whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from segforge.config.engine import EngineConfig, MachineConfig
from segforge.config.network import NetworkConfig
from segforge.datasets.arrival.make import make_dataset
from segforge.datasets.core.index import load_index
from segforge.datasets.core.panoptic import disagreements, read_segment_ids
from segforge.files import read_csv, read_json
from segforge.layout import EnginePaths, VariantPaths

VARIANT = "panopticfcn_small-resnet18-shapes"
NETWORK = [
    *("model=panopticfcn_small", "backbone=resnet18", "dataset=shapes"),
    *("dataset.height=64", "dataset.width=96", "dataset.tasks=[semantic,panoptic]"),
    *("dataset.options.scenes={train: 16, val: 4, test: 6}", "dataset.options.radius=[10,16]"),
    *("dataset.options.things_per_scene=[2,3]", "model.options.channels=32", "model.options.embedding=32"),
    *("recipe.input.height=64", "recipe.input.width=96", "recipe.training.crop=null", "recipe.training.epochs=30"),
    *("recipe.training.batch=4", "recipe.training.lr=0.004", "recipe.training.validate_every=30"),
    *("export.batch_max=2", "export.check_batches=[1,2]", "export.check_images=4"),
]


@pytest.fixture
def road(project: Path, composed: Callable[..., Any]) -> Callable[..., Any]:
    """The model half, run; gives configs of the engine half."""
    from stages.export import export
    from stages.probe import probe
    from stages.simplify import simplify
    from stages.train import train

    config = OmegaConf.to_object(composed("network", NETWORK))
    assert isinstance(config, NetworkConfig)
    make_dataset(config.dataset)
    for stage in (train, export, simplify):
        stage(config)
    probe(MachineConfig())

    def engine(*words: str) -> EngineConfig:
        found = OmegaConf.to_object(composed("engine", [f"variant={VARIANT}", "benchmark.batches=[1,2]", *words]))
        assert isinstance(found, EngineConfig)
        return found

    return engine


@pytest.mark.slow
def test_panoptic_road(road: Callable[..., Any]) -> None:
    from segforge.engines.engine import build_engine
    from stages.evaluate import evaluate
    from stages.gate import gate
    from stages.predict import predict
    from stages.preprocess import preprocess
    from stages.quantize import quantize

    exported = read_json(VariantPaths(VARIANT).metrics("export"), made_by="")
    assert exported["metric"] == "pq"
    assert exported["checkpoint"] > 0.1, "the network found nothing: what follows would say nothing"
    assert exported["max_mismatch"] <= 0.0005

    for words in (("target=cpu-torch",), ("target=cpu-openvino",), ("precision=int8",)):
        config = road(*words)
        quantize(config)
        build_engine(config)
        evaluate(config)
        paths = EnginePaths(VARIANT, config.target.name, config.precision.name)
        ledger = read_csv(paths.detail("evaluate", "ledger.csv"), made_by="")
        assert [row["batch"] for row in ledger if row["step"] == "engine"] == ["1", "2"]
        scored = read_json(paths.metrics("evaluate"), made_by="")
        assert {"sq", "rq", "pq_things", "pq_stuff", "miou"} <= scored.keys()
        if config.precision.name == "fp32":
            gate(config)
            assert scored["score"] == pytest.approx(exported["checkpoint"], abs=0.005)
        else:  # so little a network is no judge of int8
            assert scored["score"] > 0.5 * exported["checkpoint"]

    preprocess(road("output=inputs"))
    assert len(list(Path("inputs").glob("*.bin"))) == 6
    assert [row["name"] for row in read_json(Path("inputs/inputs.json"), made_by="")["outputs"]] == [
        *("masks", "scores", "classes", "stuff_ids")
    ]

    predict(road("precision=int8", "input=data/shapes/scenes/test", "output=found"))
    listed = json.loads(Path("found/panoptic.json").read_text())
    assert {c["name"]: c["isthing"] for c in listed["categories"]}["ball"] == 1
    assert len(listed["annotations"]) == len(load_index("shapes").split("panoptic", "test"))
    for row in listed["annotations"]:
        ids = read_segment_ids(Path("found", row["file_name"]))
        assert disagreements(ids, [segment["id"] for segment in row["segments_info"]]) == []
        assert sum(segment["area"] for segment in row["segments_info"]) == np.count_nonzero(ids)
        with Image.open(Path("found", f"{Path(row['file_name']).stem}-overlay.jpg")) as image:
            assert image.size == (96, 64)
