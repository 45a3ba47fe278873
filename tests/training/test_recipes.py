"""Every recipe composes, is named after its file, and passes the checks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segforge import config as schema
from segforge.architectures import registry
from segforge.errors import SegforgeError
from segforge.training.checkpoint import network_of

CONF = Path(__file__).resolve().parents[2] / "conf"
RECIPES = sorted((CONF / "recipe").glob("*.yaml"))
SERVED = {
    "bisenet_coincheung": ("shapes", "cityscapes"),
    "deeplabv3plus": ("shapes", "camvid"),
    "classifier": ("shapes", "image_folder"),
}


def composed_config(composed: Callable[..., object], variant: str, *more: str) -> schema.NetworkConfig:
    model, backbone, dataset = variant.split("-")
    words = [f"model={model}", f"backbone={backbone}", f"dataset={dataset}", *more]
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


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pair_has_a_recipe(path: Path) -> None:
    model = OmegaConf.merge(schema.Model, OmegaConf.load(path))
    backbones = model.options.get("configs") or registry[model.architecture or model.name].backbones
    wanted = {f"{model.name}-{backbone}" for backbone in (["own"] if model.name == "mmseg" else backbones)}
    assert wanted <= {recipe.stem.rpartition("-")[0] for recipe in RECIPES}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.epochs=-1", "0: the weights as they come"),
        ("training.batch=1", "batch norm"),
        ("training.validate_every=0", "1 epoch or more"),
        ("training.augment.scale=[1]", "0 < low <= high"),
        ("training.augment.scale=[0,1]", "0 < low <= high"),
        ("training.augment.scale=[2,1]", "0 < low <= high"),
        ("training.crop=[96]", "height, width"),
        ("training.crop=[96,0]", "height, width"),
        ("input.mean=[1,2]", "three channels"),
        ("input.std=[1,2]", "three channels"),
        ("input.std=[1,0,1]", "above 0"),
        ("training.loss.class_weights=inverse_log", "panoptic"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(word: str, said: str, composed: Callable[..., object]) -> None:
    with pytest.raises(SegforgeError, match=said) as refusal:
        schema.check_network(composed_config(composed, "panopticfcn_small-resnet18-shapes", f"recipe.{word}"))
    assert word.partition("=")[0] in str(refusal.value)


def test_inference_left_empty_is_the_papers(composed: Callable[..., object]) -> None:
    assert composed_config(composed, "panopticfcn-resnet50-shapes_512").model.inference == schema.Inference()


def test_options_of_the_training_are_laid_over_the_models(composed: Callable[..., object]) -> None:
    narrow = composed_config(composed, "bisenetv2-bisenetv2-shapes")
    wide = composed_config(composed, "bisenetv2-bisenetv2-camvid")
    assert heads(narrow) == [16, 32, 32, 64]
    assert heads(wide) == [16, 64, 256, 1024]  # mmsegmentation's own


def heads(config: schema.NetworkConfig) -> list[int]:
    """The widths of the auxiliary heads."""
    return [head.conv_seg.in_channels for head in network_of(config, 8).auxiliary_head]  # type: ignore[attr-defined,union-attr]
