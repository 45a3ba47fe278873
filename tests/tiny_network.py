"""A data set of coloured rectangles and an untrained network with all that the exporter makes difficult."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.nn import functional

from segforge.architectures import classifier, deeplabv3plus
from segforge.checkpoint import host_copy, save_checkpoint
from segforge.config.network import NetworkConfig
from segforge.files import sha256_file, write_json

HEIGHT, WIDTH = 32, 40  # of the network's input; labels have 36 rows: no whole ratio to its 16 x 20 logits
CLASSES = ["a", "b", "c"]


class Tiny(nn.Module):
    """Convolution, batch norm and ReLU6; a pooled branch enlarged from 1 x 1; concatenation; logits at stride 2."""

    def __init__(self, classification: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.local = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
        self.last = nn.Conv2d(16, len(CLASSES), 1)
        self.classification = classification

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        low = self.first(images)
        pooled = functional.interpolate(self.pooled(low), size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.last(torch.cat([self.local(low), pooled], 1))
        return logits.mean((2, 3)) if self.classification else logits


def _write_dataset() -> list[str]:
    random = np.random.default_rng(5)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {"semantic": {}, "classification": {}}
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        folder = Path("data/shapes") / split
        folder.mkdir(parents=True)
        for i in range(count):
            ids = np.kron(random.integers(0, 3, (3, 4)), np.ones((12, 10))).astype(np.uint8)
            image = np.array([[230, 40, 60], [50, 200, 70], [30, 90, 210]])[ids] + random.normal(0, 15, (36, 40, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
            Image.fromarray(ids).save(folder / f"{i}-ids.png")
            row = {"image": f"{split}/{i}.png", "sha256": sha256_file(folder / f"{i}.png")}
            samples["semantic"].setdefault(split, []).append({**row, "label": f"{split}/{i}-ids.png"})
            samples["classification"].setdefault(split, []).append({**row, "label": int(ids[0, 0])})
    write_json(
        Path("data/shapes/index.json"),
        {
            "name": "shapes",
            "void": 255,
            "colours": [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
            "classes": {"semantic": CLASSES, "classification": CLASSES},
            "samples": samples,
        },
    )
    return [row["sha256"] for row in samples["semantic"]["train"]]


Make = Callable[..., NetworkConfig]


@pytest.fixture
def trained(project: Path, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Make:
    """`trained("export.tail=logits", …)`: the config of a variant whose checkpoint and data set lie in the folder."""
    hashes = _write_dataset()
    for family in (deeplabv3plus, classifier):

        def build(*_: Any, classification: bool = family is classifier, **__: Any) -> nn.Module:
            return Tiny(classification)

        taken = replace(family.ARCHITECTURE, build=build, input_multiple=8)
        monkeypatch.setattr(family, "ARCHITECTURE", taken)

    def make(*words: str, model: str = "deeplabv3plus", backbone: str = "mobilenet_v2") -> NetworkConfig:
        sizes = [f"recipe.input.height={HEIGHT}", f"recipe.input.width={WIDTH}"]
        sizes += ["dataset.height=36", "dataset.width=40"]
        names = [f"dataset.classes={{semantic: [{', '.join(CLASSES)}], classification: [{', '.join(CLASSES)}]}}"]
        chosen = [f"model={model}", f"backbone={backbone}", "dataset=shapes", "export.check_images=4"]
        config = OmegaConf.to_object(composed("network", [*chosen, *sizes, *names, *words]))
        assert isinstance(config, NetworkConfig)
        torch.manual_seed(0)
        network = Tiny(model == "classifier")
        weights = host_copy(network)
        save_checkpoint(
            config.paths.checkpoint,
            config,
            best=weights,
            last=weights,
            classes=CLASSES,
            epoch=1,
            scores={"val": 0.5},
            train_images=hashes,
        )
        return config

    return make
