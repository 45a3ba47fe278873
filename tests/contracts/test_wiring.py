"""dvc.yaml and pipeline/ against conf/: what a stage composes is what it tracks; what it writes, layout.py spells."""

import ast
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from import_graph import NAMED, closure

from segforge import layout

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = yaml.safe_load((ROOT / "params.yaml").read_text())
CONFIG_OF_STAGE = {
    "probe": "machine",
    "ceilings": "machine",
    "report": "machine",
    "download": "dataset",
    **dict.fromkeys(("train", "export", "simplify"), "network"),
    **dict.fromkeys(("quantize", "build", "evaluate", "gate", "benchmark"), "engine"),
}
# A stage composes its whole primary config but need not read all of it. What it leaves alone is
# named here, so that anything new is tracked unless somebody says otherwise.
THROUGH_INDEX = {"dataset"}  # what a network needs of it stands in the data set's index.json
THROUGH_MANIFEST = {"target", "device"}  # what reaches an engine stands in its manifest.json
NOT_READ = {
    "train": {"export", *THROUGH_INDEX},
    "export": THROUGH_INDEX,
    "simplify": {"model", "backbone", "recipe", *THROUGH_INDEX},
    "download": {"recipe"},
    "report": {"device"},
    "quantize": {"benchmark"},
    "build": {"benchmark"},
    "evaluate": {"precision", *THROUGH_MANIFEST},
    "gate": {"benchmark", *THROUGH_MANIFEST},
    "benchmark": THROUGH_MANIFEST,
}
# Modules that no stage tracks: they decide how something is said, where it lies or that it is whole, and no result.
GROUND = {
    *("segforge", "segforge.errors", "segforge.files", "segforge.layout", "segforge.terminal"),
    *("segforge.fetch", "segforge.stage"),
    *NAMED,  # a name and a line each: what they choose is tracked by the stage
}


@cache
def stages() -> dict[str, Any]:
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages}


@cache
def graph() -> Any:
    """Every stage; an edge runs from a stage to what it needs."""
    with Repo(str(ROOT)) as repo:
        return repo.index.graph


def tracked(stage: Any) -> tuple[set[str], set[str], dict[str, list[str]]]:
    """Files, outputs and tracked parameters (file -> keys, empty for all) of a stage."""
    files = {d.def_path for d in stage.deps if not hasattr(d, "params")}
    outs = {o.def_path for o in stage.outs}
    params = {d.def_path: list(d.params) for d in stage.deps if hasattr(d, "params")}
    return files, outs, params


def test_every_stage_script_is_wired_and_every_wired_stage_has_its_script() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"predict", "preprocess", "compare", "tails"}
    assert {name.split("@")[0] for name in stages()} == scripts == set(CONFIG_OF_STAGE)


def test_keys_of_the_catalogue_say_what_they_hold() -> None:
    for key, row in CATALOGUE["variants"].items():
        assert key == row["variant"] == f"{row['model']}-{row['backbone']}-{row['dataset']}"
        model = yaml.safe_load((ROOT / "conf" / "model" / f"{row['model']}.yaml").read_text())
        assert (row["family"], row["task"]) == (model.get("family", row["model"]), model["task"])
        assert row["dataset"] in CATALOGUE["datasets"]
    for key, row in CATALOGUE["datasets"].items():
        data = yaml.safe_load((ROOT / "conf" / "dataset" / f"{key}.yaml").read_text())
        assert row["format"] == data.get("format", key)
    for key, row in CATALOGUE["engines"].items():
        assert key == f"{row['variant']}-{row['device']}-{row['runtime']}-{row['precision']}"
        assert row.items() >= CATALOGUE["variants"][row["variant"]].items()
    assert set(CATALOGUE["devices"]) == {row["device"] for row in CATALOGUE["engines"].values()}


def test_the_catalogue_has_every_cpu_target_and_every_variant_in_int8() -> None:
    engines = CATALOGUE["engines"].values()
    targets = {path.stem for path in (ROOT / "conf" / "target").glob("cpu-*.yaml")}
    assert {f"{row['device']}-{row['runtime']}" for row in engines} == targets
    assert {r["variant"] for r in engines if r["precision"] == "int8"} == set(CATALOGUE["variants"])


def row_of(name: str) -> dict[str, str]:
    """What the catalogue names for a stage: a variant's, an engine's or a data set's fields."""
    verb, _, key = name.partition("@")
    if verb == "report":
        rows = [*CATALOGUE["engines"].values()]
        return {field: " ".join(dict.fromkeys(row[field] for row in rows)) for field in ("task", "runtime", "family")}
    row: dict[str, str] = {}
    for part in ("datasets", "variants", "engines"):
        row |= CATALOGUE[part].get(key, {}) if part != "datasets" or verb == "download" else {}
    return row


def untracked(root: Path, name: str) -> dict[str, str]:
    """The modules that a stage imports and does not track, with the one that each came by."""
    verb = name.partition("@")[0]
    files, _, _ = tracked(stages()[name])
    here = {path for path in files if path.startswith(("src/", "stages/"))}
    missing = {}
    for module, by in closure(root, f"stages.{verb}", row_of(name)).items():
        path = "/".join((["src"] if module.startswith("segforge") else []) + module.split("."))
        known = any(f"{path}.py" == dep or f"{path}/".startswith(f"{dep}/") for dep in here)
        if not known and module not in GROUND:
            missing[module] = by
    # A package's own file holds a line of text where its folder is not tracked.
    return {m: by for m, by in missing.items() if not _only_says_what_it_is(root, m)}


def _only_says_what_it_is(root: Path, module: str) -> bool:
    file = root / "src" / module.replace(".", "/") / "__init__.py"
    return file.is_file() and [type(node) for node in ast.parse(file.read_text()).body] == [ast.Expr]


@pytest.mark.parametrize("name", stages())
def test_a_stage_tracks_every_module_that_it_comes_to_import(name: str) -> None:
    assert not untracked(ROOT, name)


@pytest.mark.parametrize("metric", ["semantic/miou.py", "panoptic/quality.py", "classification/topk.py"])
def test_an_import_in_a_metric_is_noticed_though_its_task_imports_it_by_name(metric: str, tmp_path: Path) -> None:
    for folder in ("src", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    file = tmp_path / "src/segforge/tasks" / metric
    file.write_text(
        file.read_text().replace("import numpy as np", "import numpy as np\nfrom segforge import elsewhere", 1)
    )
    task = metric.split("/")[0]
    variant = next(key for key, row in CATALOGUE["variants"].items() if row["task"] == task)
    for verb in MODEL_HALF:
        assert "segforge.elsewhere" in untracked(tmp_path, f"{verb}@{variant}")
    other = next(key for key, row in CATALOGUE["variants"].items() if row["task"] != task)
    assert not untracked(tmp_path, f"train@{other}")


def test_one_import_that_nothing_tracks_is_noticed(tmp_path: Path) -> None:
    for folder in ("src", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    file = tmp_path / "src/segforge/datasets/core/images.py"
    file.write_text(
        file.read_text().replace("import numpy as np", "import numpy as np\nfrom segforge.timing import verdict")
    )
    for verb in ("train", "evaluate"):
        name = next(n for n in stages() if n.startswith(verb))
        assert untracked(tmp_path, name)["segforge.timing.verdict"] == "segforge.datasets.core.images"
    name = next(n for n in stages() if n.startswith("benchmark"))
    assert not untracked(tmp_path, name), "what a stage tracks already is no finding"


@pytest.mark.parametrize("name", [n for n in stages() if n.split("@")[0] not in ("probe",)])
def test_what_a_stage_composes_is_what_it_tracks(name: str, composed: Callable[..., Any]) -> None:
    stage, verb = stages()[name], name.split("@")[0]
    files, _, params = tracked(stage)
    words = stage.cmd.split()
    assert words[:2] == ["python", f"stages/{verb}.py"]
    assert f"stages/{verb}.py" in files
    choices = composed(CONFIG_OF_STAGE[verb], words[2:], choices=True).hydra.runtime.choices
    read = {key.split("@")[0]: option for key, option in choices.items() if not key.startswith("hydra/") and option}
    for group, option in read.items():
        if group in NOT_READ.get(verb, set()):
            continue
        assert f"conf/{group}/{option}.yaml" in params, f"{name} reads conf/{group}/{option}.yaml and does not track it"
    surplus = {path for path in params if re.match(r"conf/\w+/", path)} - {
        f"conf/{g}/{o}.yaml" for g, o in read.items()
    }
    if verb == "gate":  # reads the recipe's budget on its own
        recipe = f"conf/recipe/{words[2].removeprefix('variant=')}.yaml"
        assert recipe in surplus
        surplus -= {recipe}
    assert not surplus, f"{name} tracks what it does not read"
    missing = [
        path
        for path in [*params, *(f for f in files if f.startswith(("stages/", "src/")))]
        if not (ROOT / path).exists()
    ]
    assert not missing


def test_outputs_are_where_layout_spells_them() -> None:
    outs = {name: tracked(stage)[1] for name, stage in stages().items()}
    for key in CATALOGUE["variants"]:
        paths = layout.VariantPaths(key)
        assert outs[f"train@{key}"] == {str(paths.checkpoint), str(paths.metrics("train")), str(paths.curves)}
        assert outs[f"export@{key}"] == {str(paths.onnx), str(paths.metrics("export"))}
        assert outs[f"simplify@{key}"] == {str(paths.simplified), str(paths.metrics("simplify"))}
    for key, row in CATALOGUE["engines"].items():
        paths = layout.EnginePaths(row["variant"], f"{row['device']}-{row['runtime']}", row["precision"])
        assert outs[f"quantize@{key}"] == {str(paths.typed), str(paths.calibration), str(paths.metrics("quantize"))}
        assert outs[f"build@{key}"] == {str(paths.engine), str(paths.manifest)}
        details = {str(paths.detail("evaluate", n)) for n in ("ledger.csv", "classes.csv", "outputs.json")}
        assert outs[f"evaluate@{key}"] == {str(paths.metrics("evaluate")), *details}
        assert outs[f"gate@{key}"] == {str(paths.metrics("gate"))}
        details = {str(paths.detail("benchmark", n)) for n in ("sweep.csv", "layers.csv", "record.json")}
        assert outs[f"benchmark@{key}"] == {str(paths.metrics("benchmark")), *details}
    assert outs["probe"] == {str(layout.MACHINES)}
    assert layout.machine("cpu").is_relative_to(layout.MACHINES)
    assert layout.installed("cpu", "torch").is_relative_to(layout.MACHINES)
    for device in CATALOGUE["devices"]:
        assert outs[f"ceilings@{device}"] == {str(layout.ceilings(device))}
    assert outs["report"] == {str(p) for p in (layout.REPORT, layout.FIGURES, layout.LATENCY_PLOT, layout.SCORE_PLOT)}


def downstream(names: set[str]) -> set[str]:
    """`names` and every stage behind them in the graph."""
    found: set[str] = set()
    todo = [stage for stage in graph().nodes if stage.name in names]
    while todo:
        node = todo.pop()
        if node.name not in found:
            found.add(node.name)
            todo.extend(graph().predecessors(node))
    return found


def touched(path: str, key: str | None = None) -> set[str]:
    """The stages that list `path` (or the key of a parameter file) themselves."""
    hit = set()
    for name, stage in stages().items():
        files, _, params = tracked(stage)
        if any(path == f or path.startswith(f + "/") for f in files):
            hit.add(name)
        if path in params and (not params[path] or key is None or key in params[path]):
            hit.add(name)
    return hit


DEEPLAB = "deeplabv3plus-mobilenet_v2-shapes"
ENGINE_HALF = ("quantize", "build", "evaluate", "gate", "benchmark")


def engines(**wanted: str) -> set[str]:
    return {k for k, row in CATALOGUE["engines"].items() if all(row[f] == v for f, v in wanted.items())}


def half(keys: set[str], verbs: tuple[str, ...] = ENGINE_HALF) -> set[str]:
    return {f"{verb}@{key}" for verb in verbs for key in keys}


MODEL_HALF = ("train", "export", "simplify")
EVERY = set(CATALOGUE["engines"])


def of(field: str, value: str) -> set[str]:
    """Every stage of the variants and engines whose row says so, and the report."""
    variants = {key for key, row in CATALOGUE["variants"].items() if row.get(field) == value}
    return half(variants, MODEL_HALF) | half(engines(**{field: value})) | {"report"}


EDITS = {
    "a recipe's training": (
        f"conf/recipe/{DEEPLAB}.yaml",
        "training",
        half({DEEPLAB}, MODEL_HALF) | half(engines(variant=DEEPLAB)) | {"report"},
    ),
    "a recipe's budget": (
        f"conf/recipe/{DEEPLAB}.yaml",
        "budget",
        half(engines(variant=DEEPLAB), ("gate",)) | {"report"},
    ),
    "a precision": ("conf/precision/int8.yaml", "calibration", half(engines(precision="int8")) | {"report"}),
    "a precision's budget": (
        "conf/precision/int8.yaml",
        "budget",
        half(engines(precision="int8"), ("gate",)) | {"report"},
    ),
    "a target": ("conf/target/cpu-openvino.yaml", None, half(engines(runtime="openvino")) | {"report"}),
    "the benchmark": ("conf/benchmark/default.yaml", "measure_s", half(EVERY, ("benchmark",)) | {"report"}),
    "a metric": ("src/segforge/tasks/classification/topk.py", None, of("task", "classification")),
    "a task": ("src/segforge/tasks/panoptic/__init__.py", None, of("task", "panoptic")),
    "a runtime": (
        "src/segforge/runtimes/openvino.py",
        None,
        half(engines(runtime="openvino"), ("build", "evaluate", "gate", "benchmark")) | {"report"},
    ),
    "a runtime's version": (
        "models/machines/cpu/openvino.json",
        None,
        half(engines(runtime="openvino"), ("build", "evaluate", "gate", "benchmark")) | {"report"},
    ),
    "an architecture": ("src/segforge/architectures/classifier.py", None, of("family", "classifier")),
    "a data set": (
        "conf/dataset/shapes.yaml",
        None,
        set(stages()) - {"probe"} - {f"ceilings@{d}" for d in CATALOGUE["devices"]},
    ),
    "the program that builds": (
        "stages/build.py",
        None,
        half(EVERY, ("build", "evaluate", "gate", "benchmark")) | {"report"},
    ),
    "the program of the gate": ("stages/gate.py", None, half(EVERY, ("gate",)) | {"report"}),
    "the program of the report": ("stages/report.py", None, {"report"}),
    "how a figure is taken": ("src/segforge/timing/measure.py", None, half(EVERY, ("benchmark",)) | {"report"}),
    "a schema": ("src/segforge/config/rules.py", None, set(stages())),  # every program composes conf/ through it
    "what this process may use": ("src/segforge/process.py", None, set(stages())),
    "what recognises a device": (
        "conf/device/cpu.yaml",
        "recognise",
        {"probe", "report", *(f"ceilings@{d}" for d in CATALOGUE["devices"])}
        | half(EVERY, ("build", "evaluate", "gate", "benchmark")),
    ),
    "a program that is no stage": ("stages/compare.py", None, set()),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_reaches_exactly_what_depends_on_it(what: str) -> None:
    path, key, expected = EDITS[what]
    assert (ROOT / path).exists() or path.startswith("models/")
    assert downstream(touched(path, key)) == expected
