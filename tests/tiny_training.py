"""A tiny made-up data set and the config that trains on it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segforge import layout
from segforge.config.network import Backbone, Model, NetworkConfig
from segforge.config.recipe import Dataset, Input, Recipe, Training
from segforge.files import sha256_file, write_json

VOID = 255


def make_data(root: Path, counts: dict[str, int] | None = None, size: tuple[int, int] = (32, 48)) -> None:
    """Data set `tiny` under `root`: a bright rectangle on a dark ground, and its class as a picture's label."""
    rng = np.random.default_rng(0)
    folder = root / layout.dataset("tiny")
    samples: dict[str, dict[str, list[dict[str, object]]]] = {"semantic": {}, "classification": {}}
    for split, count in (counts or {"train": 8, "val": 4, "test": 2}).items():
        (folder / split).mkdir(parents=True)
        for rows in samples.values():
            rows[split] = []
        for number in range(count):
            image = rng.integers(0, 80, (*size, 3), dtype=np.uint8)
            ids = np.zeros(size, np.uint8)
            top, left = rng.integers(2, 12, 2)
            which = number % 2 + 1
            image[top : top + 16, left : left + 16, which] += 150
            ids[top : top + 16, left : left + 16] = which
            ids[top - 1] = VOID
            image_file, label_file = folder / split / f"{number}.png", folder / split / f"{number}-ids.png"
            Image.fromarray(image).save(image_file)
            Image.fromarray(ids).save(label_file)
            row = {"image": f"{split}/{image_file.name}", "sha256": sha256_file(image_file)}
            samples["semantic"][split].append({**row, "label": f"{split}/{label_file.name}"})
            samples["classification"][split].append({**row, "label": which})
    classes = {"semantic": ["ground", "green", "blue"], "classification": ["none", "green", "blue"]}
    write_json(
        folder / "index.json", {"name": "tiny", "void": VOID, "colours": [], "classes": classes, "samples": samples}
    )


def tiny_config(task: str = "semantic", **training: object) -> NetworkConfig:
    """A config that trains on `tiny` in a second or two."""
    model, backbone = {
        "semantic": ("deeplabv3plus", "mobilenet_v2"),
        "classification": ("classifier", "mobilenet_v3_small"),
    }[task]
    variant = f"{model}-{backbone}-tiny"
    settings = {"epochs": 2, "batch": 4, "lr": 0.002, "ema_decay": 0.9, **training}
    recipe = Recipe(
        name=variant,
        input=Input(height=32, width=48),
        training=Training(**settings),  # type: ignore[arg-type]
    )
    names = {"semantic": ["ground", "green", "blue"], "classification": ["none", "green", "blue"]}
    return NetworkConfig(
        variant=variant,
        train_on="cpu",
        model=Model(model, task),
        backbone=Backbone(backbone),
        dataset=Dataset(
            name="tiny", tasks=["semantic", "classification"], classes=names, void=VOID, height=32, width=48
        ),
        recipe=recipe,
    )


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root with the data set `tiny`, and the current folder."""
    make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
