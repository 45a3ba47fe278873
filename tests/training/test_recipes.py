"""Every recipe composes, is named after its file, and passes the checks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segforge.architectures import architecture_of
from segforge.checkpoint import network_of
from segforge.config.compose import budget, precision_row
from segforge.config.network import Inference, Model, NetworkConfig
from segforge.config.rules import known_names
from segforge.errors import SegforgeError

CONF = Path(__file__).resolve().parents[2] / "conf"
RECIPES = sorted((CONF / "recipe").glob("*.yaml"))
SERVED = {
    "bisenet_coincheung": ("shapes", "cityscapes"),
    "deeplabv3plus": ("shapes", "camvid"),
    "classifier": ("shapes", "image_folder"),
}


def composed_config(composed: Callable[..., object], variant: str, *more: str) -> NetworkConfig:
    model, backbone, dataset = variant.split("-")
    words = [f"model={model}", f"backbone={backbone}", f"dataset={dataset}", *more]
    if model == "mmseg":
        words.append("mmseg.config=bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024")
    found = composed("network", words)
    checked = OmegaConf.to_object(found)  # type: ignore[call-overload]
    assert isinstance(checked, NetworkConfig)
    return checked


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_composes_and_passes_the_checks(
    path: Path, composed: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONF.parent)
    config = composed_config(composed, path.stem)
    config.check()
    assert config.variant == path.stem
    precisions = known_names("precision")
    assert {"fp32", "bf16", "int8"} <= {*precisions}
    assert {*config.recipe.budget} <= {*precisions}
    for precision in precisions:
        assert 0 < budget(config.variant, precision_row(precision)) < 0.1
        assert budget(config.variant, precision_row(precision)) == config.recipe.budget.get(
            precision, precision_row(precision).budget
        )
    assert config.backbone.name in architecture_of(config.model.family).backbones
    network_of(config, len(config.dataset.classes.get(config.model.task) or [0, 1]))


def test_every_network_has_a_recipe_on_its_data_sets() -> None:
    wanted = {
        f"{model}-{backbone}-{dataset}"
        for model, datasets in SERVED.items()
        for backbone in architecture_of(model).backbones
        for dataset in datasets
    }
    assert wanted <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pair_has_a_recipe(path: Path) -> None:
    model = OmegaConf.merge(Model, OmegaConf.load(path))
    backbones = model.options.get("configs") or architecture_of(model.family or model.name).backbones
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
        composed_config(composed, "panopticfcn_small-resnet18-shapes", f"recipe.{word}").check()
    assert word.partition("=")[0] in str(refusal.value)


def test_inference_left_empty_is_the_papers(composed: Callable[..., object]) -> None:
    assert composed_config(composed, "panopticfcn-resnet50-shapes_512").model.inference == Inference()


def test_options_of_the_training_are_laid_over_the_models(composed: Callable[..., object]) -> None:
    narrow = composed_config(composed, "bisenetv2-bisenetv2-shapes")
    wide = composed_config(composed, "bisenetv2-bisenetv2-camvid")
    assert heads(narrow) == [16, 32, 32, 64]
    assert heads(wide) == [16, 64, 256, 1024]  # mmsegmentation's own


def heads(config: NetworkConfig) -> list[int]:
    """The widths of the auxiliary heads."""
    return [head.conv_seg.in_channels for head in network_of(config, 8).auxiliary_head]  # type: ignore[attr-defined,union-attr]
