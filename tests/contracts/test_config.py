"""conf/: every option composes, and what cannot work together is refused with the reason."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from segforge.config.compose import budget, engine_config, known_devices, precision_row
from segforge.config.engine import Precision
from segforge.config.network import NetworkConfig
from segforge.errors import SegforgeError
from segforge.precisions import TYPINGS, typing_of
from segforge.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))
TARGETS = sorted(path.stem for path in (ROOT / "conf" / "target").glob("*.yaml"))
PRECISIONS = sorted(path.stem for path in (ROOT / "conf" / "precision").glob("*.yaml"))


def network(composed: Callable[..., Any], *overrides: str) -> NetworkConfig:
    found = OmegaConf.to_object(composed("network", list(overrides)))
    assert isinstance(found, NetworkConfig)
    found.check()
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_into_a_variant_that_can_work(
    recipe: str, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, backbone, dataset = recipe.split("-")
    config = network(composed, f"model={model}", f"backbone={backbone}", f"dataset={dataset}")
    assert config.variant == config.recipe.name == recipe
    assert config.dataset.score_split not in config.recipe.training.splits
    monkeypatch.chdir(ROOT)
    assert {"fp32", "bf16", "int8"} <= set(PRECISIONS)
    for precision in PRECISIONS:  # its own, or the precision's
        assert 0 <= budget(recipe, precision_row(precision)) < 1
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
    assert config.target.name == f"{config.target.device.name}-{config.target.runtime}" == target
    works = precision in config.target.precisions and config.precision.arithmetic in config.target.device.precisions
    if works:
        config.check()
        return
    with pytest.raises(SegforgeError, match=rf"cannot run {precision}: \w+") as refusal:
        config.check()
    assert "expected: one of" in str(refusal.value)
    assert "try: precision=" in str(refusal.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_of_a_device_and_a_runtime_that_there_are(
    target: str, composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = OmegaConf.to_object(composed("engine", [f"target={target}"])).target
    assert found.runtime in RUNTIMES
    assert found.device in known_devices()
    # The device's file is the one of its name, and what the target claims and refuses is a row of the table.
    assert OmegaConf.load(ROOT / "conf" / "device" / f"{found.device.name}.yaml").name == found.device.name
    assert set(found.precisions) <= set(PRECISIONS)
    assert set(found.refused) <= set(PRECISIONS) - set(found.precisions)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_has_a_way_of_typing_that_serves_it(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    row = precision_row(precision)
    row.check()
    assert row.name == precision
    assert row.arithmetic in typing_of(row).gives
    assert {*OmegaConf.load(ROOT / "conf" / "precision" / f"{precision}.yaml")} == {f.name for f in fields(Precision)}
    for other in set(TYPINGS) - {row.typing}:
        row.typing = other
        with pytest.raises(SegforgeError, match=f"typing={other} gives no graph in {row.arithmetic}"):
            typing_of(row)
    row.typing = "guess"
    with pytest.raises(SegforgeError, match=r"unknown precision.typing 'guess'\n.*as_is, qdq"):
        typing_of(row)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.training.optimizer=adam"], r"unknown recipe.training.optimizer 'adam'\n.*adamw, sgd"),
        (["recipe.training.splits=[train,test]", "recipe.training.select=val"], "trains on 'test', the split"),
        (["recipe.training.select=test"], "would choose its checkpoint on 'test'"),
        (["recipe.training.select=train"], "picks its best checkpoint on 'train'"),
        (["dataset.score_split=train"], "trains on 'train', the split that it is scored on"),
        (["dataset.score_split=val"], "would choose its checkpoint on 'val', the scored split"),
        (
            ["dataset.score_split=val", "recipe.training.splits=[train,val]", "recipe.training.select=null"],
            "trains on 'val', the split that it is scored on",
        ),
        (["dataset.score_split=half"], r"unknown dataset.score_split 'half'\n.*test, train, val"),
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


def test_another_split_is_scored_where_nothing_looks_at_it(composed: Callable[..., Any]) -> None:
    config = network(composed, "dataset.score_split=val", "recipe.training.select=null")
    assert config.dataset.score_split == "val"
    network(composed, "recipe.training.splits=[train,val]", "recipe.training.select=null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target.activation=uint4", "unknown target.activation 'uint4'"),
        ("target.argmax=rows", "unknown target.argmax 'rows'"),
        ("target.threads=-1", "threads=-1"),
        ("precision.mark.shape=star", "unknown precision.mark.shape 'star'"),
        ("precision.budget=-0.1", r"precision\.budget=-0\.1"),
        ("precision.agreement=1.1", r"precision\.agreement=1\.1"),
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
        OmegaConf.to_object(composed("engine", ["precision=int8", override])).check()


def test_a_budget_is_read_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fp32 = precision_row("fp32")
    assert budget("deeplabv3plus-mobilenet_v2-shapes", fp32) == 0.0005
    assert budget("deeplabv3plus-mobilenet_v2-shapes", replace(fp32, budget=0.002)) == 0.002
    with pytest.raises(SegforgeError, match=r"unknown precision 'fp8'\n.*int8"):
        precision_row("fp8")
    with pytest.raises(SegforgeError, match="unknown variant"):
        budget("deeplab", fp32)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: odd\nkind: cpu\nprecisons: [fp32]\n", r"odd\.yaml: Key 'precisons' not in 'Device'(.|\n)*precisions"),
        ("name: odd\nprecisions: [fp32]\n", r"odd\.yaml: .*[Mm]issing.*(.|\n)*kind"),
        ("name: odd\nkind: gpuu\nprecisions: [fp32]\n", r"unknown kind 'gpuu'\n.*cpu, gpu, npu"),
        ("name: odd\nkind: [\n", r"odd\.yaml: "),
    ],
)
def test_a_file_of_conf_that_is_not_of_its_schema_is_named(text: str, said: str, project: Path, stage: Any) -> None:
    (project / "conf" / "device" / "odd.yaml").write_text(text)
    with pytest.raises(SegforgeError, match=said):
        known_devices()
    done = stage("probe")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr


def test_a_precision_by_the_name_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SegforgeError, match=r"precision=fp8 with precision\.arithmetic=int8"):
        replace(precision_row("int8"), name="fp8").check()


def test_a_recipe_may_say_another_budget_than_its_precision(project: Path) -> None:
    mine, other = "deeplabv3plus-mobilenet_v2-shapes", "classifier-mobilenet_v3_small-shapes"
    own = {precision: precision_row(precision).budget for precision in PRECISIONS}
    recipe = project / "conf" / "recipe" / f"{mine}.yaml"
    plain = recipe.read_text()
    recipe.write_text(f"{plain}budget: {{int8: 0.123}}\n")
    assert {p: budget(mine, precision_row(p)) for p in PRECISIONS} == {**own, "int8": 0.123}
    assert {p: budget(other, precision_row(p)) for p in PRECISIONS} == own
    recipe.write_text(f"{plain}budget: {{int8: 0.0}}\n")  # none at all may be lost: not the same as saying nothing
    assert budget(mine, precision_row("int8")) == 0 < own["int8"]
    recipe.write_text(f"{plain}budget: {{int6: 0.1}}\n")
    with pytest.raises(SegforgeError, match=r"unknown recipe.budget 'int6'\n.*int8"):
        budget(mine, precision_row("int8"))


def test_another_engine_is_composed_and_checked_as_its_stages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = engine_config("deeplabv3plus-mobilenet_v2-shapes", "cpu-openvino", "bf16")
    assert (config.target.name, config.precision.name) == ("cpu-openvino", "bf16")
    with pytest.raises(SegforgeError, match="cannot run bf16"):
        engine_config("deeplabv3plus-mobilenet_v2-shapes", "cpu-onnxruntime", "bf16")
