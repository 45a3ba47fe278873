"""Every recipe composes, is named after its file, and passes the checks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segforge import config as schema
from segforge.architectures import registry
from segforge.training.checkpoint import network_of

RECIPES = sorted((Path(__file__).resolve().parents[2] / "conf" / "recipe").glob("*.yaml"))
SERVED = {
    "deeplabv3plus": ("shapes", "camvid"),
    "classifier": ("shapes", "image_folder"),
}


def composed_config(composed: Callable[..., object], variant: str) -> schema.NetworkConfig:
    model, backbone, dataset = variant.split("-")
    words = [f"model={model}", f"backbone={backbone}", f"dataset={dataset}"]
    if model == "mmseg":
        words.append("mmseg.config=bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024")
    found = composed("network", words)
    checked = OmegaConf.to_object(found)  # type: ignore[call-overload]
    assert isinstance(checked, schema.NetworkConfig)
    return checked


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_composes_and_passes_the_checks(path: Path, composed: Callable[..., object]) -> None:
    config = composed_config(composed, path.stem)
    schema.check_network(config)
    assert config.variant == path.stem
    assert {"fp32", "bf16", "int8"} <= set(config.recipe.budget)
    assert config.backbone.name in registry[config.model.builder].backbones
    network_of(config, len(config.dataset.classes.get(config.model.task) or [0, 1]))


def test_every_network_has_a_recipe_on_its_data_sets() -> None:
    wanted = {
        f"{model}-{backbone}-{dataset}"
        for model, datasets in SERVED.items()
        for backbone in registry[model].backbones
        for dataset in datasets
    }
    assert wanted <= {path.stem for path in RECIPES}


def test_options_of_the_training_are_laid_over_the_models(composed: Callable[..., object]) -> None:
    narrow = composed_config(composed, "bisenetv2-bisenetv2-shapes")
    wide = composed_config(composed, "bisenetv2-bisenetv2-camvid")
    assert heads(narrow) == [16, 32, 32, 64]
    assert heads(wide) == [16, 64, 256, 1024]  # mmsegmentation's own


def heads(config: schema.NetworkConfig) -> list[int]:
    """The widths of the auxiliary heads."""
    return [head.conv_seg.in_channels for head in network_of(config, 8).auxiliary_head]  # type: ignore[attr-defined,union-attr]
