"""conf/: every option composes, and what cannot work together is refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segforge import config as schema
from segforge.errors import SegforgeError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))
TARGETS = sorted(path.stem for path in (ROOT / "conf" / "target").glob("*.yaml"))
PRECISIONS = sorted(path.stem for path in (ROOT / "conf" / "precision").glob("*.yaml"))


def network(composed: Callable[..., Any], *overrides: str) -> schema.NetworkConfig:
    found = OmegaConf.to_object(composed("network", list(overrides)))
    assert isinstance(found, schema.NetworkConfig)
    schema.check_network(found)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_into_a_variant_that_can_work(recipe: str, composed: Callable[..., Any]) -> None:
    model, backbone, dataset = recipe.split("-")
    config = network(composed, f"model={model}", f"backbone={backbone}", f"dataset={dataset}")
    assert config.variant == config.recipe.name == recipe
    assert config.recipe.score_split not in config.recipe.training.splits
    assert {"fp32", "bf16", "int8"} <= set(config.recipe.budget)
    classes = config.dataset.classes.get(config.model.task, [])
    if config.model.task == "semantic":
        assert len(classes) == len(config.dataset.colours)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_target_takes_a_precision_or_says_why_not(
    target: str, precision: str, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = OmegaConf.to_object(composed("engine", [f"target={target}", f"precision={precision}"]))
    assert config.target.name == f"{config.target.device.name}-{config.target.runtime.name}" == target
    works = precision in config.target.runtime.precisions and precision in config.target.device.precisions
    if works:
        schema.check_engine(config)
        return
    with pytest.raises(SegforgeError, match=rf"cannot run {precision}: \w+") as refusal:
        schema.check_engine(config)
    assert "expected: one of" in str(refusal.value)
    assert "try: precision=" in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.training.optimizer=adam"], r"unknown recipe.training.optimizer 'adam'\n.*adamw, sgd"),
        (["recipe.training.splits=[train,test]", "recipe.training.select=val"], "trains on 'test', the split"),
        (["recipe.training.select=test"], "would choose its checkpoint on 'test'"),
        (["recipe.training.select=train"], "picks its best checkpoint on 'train'"),
        (["export.batch_min=4", "export.batch_max=2"], "1 <= batch_min <= batch_max"),
        (["export.check_batches=[1,16]"], r"\[16\] lie outside the exported range"),
        (["export.check_batches=[]"], r"check_batches=\[\](.|\n)*at least"),
        (["export.check_images=0"], "check_images=0"),
        (["export.opset=17"], "18 or later"),
        (["export.tail=softmax"], "argmax, logits"),
        (
            [
                "model=classifier",
                "backbone=mobilenet_v3_small",
                "dataset=camvid",
                "recipe=deeplabv3plus-mobilenet_v2-camvid",
            ],
            "needs classification labels, and data set 'camvid' has none",
        ),
        (["recipe=deeplabv3plus-mobilenet_v2-camvid"], "belongs to another variant"),
    ],
)
def test_what_cannot_work_together_is_refused(overrides: list[str], message: str, composed: Callable[..., Any]) -> None:
    with pytest.raises(SegforgeError, match=message):
        network(composed, *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target.runtime.activation=uint4", "unknown target.runtime.activation 'uint4'"),
        ("target.runtime.argmax=rows", "unknown target.runtime.argmax 'rows'"),
        ("target.runtime.threads=-1", "threads=-1"),
        ("precision.calibration.images=0", "calibration.images=0"),
        ("precision.calibration.percentile=0", "percentile=0"),
        ("precision.calibration.percentile=100.1", "percentile=100.1"),
        ("precision.calibration=null", r"int8 without precision\.calibration"),
        ("benchmark.streams=0", "streams=0"),
        ("benchmark.images=-1", "images=-1"),
        ("benchmark.min_samples=0", "min_samples=0"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(
    override: str, message: str, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SegforgeError, match=message):
        schema.check_engine(OmegaConf.to_object(composed("engine", ["precision=int8", override])))


def test_a_budget_is_read_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert schema.budget("deeplabv3plus-mobilenet_v2-shapes", "fp32") == 0.0005
    with pytest.raises(SegforgeError, match=r"has no budget for fp8.*\n.*int8"):
        schema.budget("deeplabv3plus-mobilenet_v2-shapes", "fp8")
    with pytest.raises(SegforgeError, match="unknown variant"):
        schema.budget("deeplab", "fp32")
