"""dvc.yaml and pipeline/ against conf/: what a stage composes is what it tracks; what it writes, layout.py spells."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

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
THROUGH_MANIFEST = {"target", "device", "runtime", "precision"}  # what reaches an engine stands in its manifest.json
NOT_READ = {
    "train": {"export", *THROUGH_INDEX},
    "export": THROUGH_INDEX,
    "simplify": {"model", "backbone", "recipe", *THROUGH_INDEX},
    "download": {"recipe"},
    "quantize": {"benchmark"},
    "build": {"benchmark", "precision"},  # a precision's settings are in typed.onnx
    "evaluate": THROUGH_MANIFEST,
    "gate": {"benchmark", *THROUGH_MANIFEST},
    "benchmark": THROUGH_MANIFEST,
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
        assert key == f"{row['model']}-{row['backbone']}-{row['dataset']}"
        model = yaml.safe_load((ROOT / "conf" / "model" / f"{row['model']}.yaml").read_text())
        assert row["architecture"] == model.get("architecture", row["model"])
        assert row["dataset"] in CATALOGUE["datasets"]
    for key, row in CATALOGUE["datasets"].items():
        data = yaml.safe_load((ROOT / "conf" / "dataset" / f"{key}.yaml").read_text())
        assert row["layout"] == data.get("layout", key)
    for key, row in CATALOGUE["engines"].items():
        assert key == f"{row['variant']}-{row['device']}-{row['runtime']}-{row['precision']}"
        assert row["dataset"] == CATALOGUE["variants"][row["variant"]]["dataset"]


def test_the_catalogue_has_every_runtime_and_every_variant_in_int8() -> None:
    engines = CATALOGUE["engines"].values()
    assert {r["runtime"] for r in engines} == {path.stem for path in (ROOT / "conf" / "runtime").glob("*.yaml")}
    assert {r["variant"] for r in engines if r["precision"] == "int8"} == set(CATALOGUE["variants"])


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
        surplus -= {p for p in surplus if p.startswith("conf/recipe/")}
        assert params[f"conf/recipe/{words[2].removeprefix('variant=')}.yaml"] == ["budget"]
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
    assert outs["probe"] == {str(layout.MACHINE)}
    assert outs["ceilings"] == {str(layout.CEILINGS)}
    assert outs["report"] == {str(p) for p in (layout.REPORT, layout.FIGURES, layout.LATENCY_PLOT, layout.SCORE_PLOT)}


@pytest.mark.parametrize(
    ("path", "verbs"),
    [
        ("src/segforge/datasets/preprocess.py", {"train", "export", "simplify", "quantize", "evaluate", "benchmark"}),
        ("src/segforge/scores/decode.py", {"export", "simplify", "quantize", "evaluate", "benchmark"}),
        ("src/segforge/scores/panoptic.py", {"export", "simplify", "quantize", "evaluate"}),
    ],
)
def test_what_decides_figures_is_tracked_by_every_stage_that_runs_it(path: str, verbs: set[str]) -> None:
    """Directly: a stage whose inputs come out the same is not run again for an edit further up."""
    assert {name.split("@")[0] for name in touched(path)} == verbs


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


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        pytest.param(
            f"conf/recipe/{DEEPLAB}.yaml",
            "training",
            {f"{v}@{DEEPLAB}" for v in ("train", "export", "simplify")} | half(engines(variant=DEEPLAB)) | {"report"},
            id="a recipe's training",
        ),
        pytest.param(
            f"conf/recipe/{DEEPLAB}.yaml",
            "budget",
            half(engines(variant=DEEPLAB), ("gate",)) | {"report"},
            id="a recipe's budget",
        ),
        pytest.param("conf/precision/int8.yaml", None, half(engines(precision="int8")) | {"report"}, id="a precision"),
        pytest.param(
            "conf/target/cpu-openvino.yaml", None, half(engines(runtime="openvino")) | {"report"}, id="a target"
        ),
        pytest.param(
            "conf/benchmark/default.yaml",
            "measure_s",
            half(set(CATALOGUE["engines"]), ("benchmark",)) | {"report"},
            id="the benchmark",
        ),
        pytest.param("stages/gate.py", None, half(set(CATALOGUE["engines"]), ("gate",)) | {"report"}, id="a script"),
        pytest.param(
            "stages/build.py",
            None,
            half(set(CATALOGUE["engines"]), ("build", "evaluate", "gate", "benchmark")) | {"report"},
            id="the build script",
        ),
        pytest.param(
            "src/segforge/architectures/classifier.py",
            None,
            {
                f"{v}@{k}"
                for k, row in CATALOGUE["variants"].items()
                if row["model"] == "classifier"
                for v in ("train", "export", "simplify")
            }
            | half({k for k, r in CATALOGUE["engines"].items() if r["variant"].startswith("classifier-")})
            | {"report"},
            id="an architecture",
        ),
        pytest.param("conf/dataset/shapes.yaml", None, set(stages()) - {"probe", "ceilings"}, id="a data set"),
        pytest.param(
            "src/segforge/scores/miou.py",
            None,
            set(stages())
            - {"probe", "ceilings", "download@shapes"}
            - {f"train@{key}" for key in CATALOGUE["variants"]},
            id="a metric",
        ),
        pytest.param(
            "src/segforge/scores/ledger.py",
            None,
            half(set(CATALOGUE["engines"]), ("evaluate", "gate", "benchmark")) | {"report"},
            id="the ledger",
        ),
        pytest.param(
            "src/segforge/timing/measure.py",
            None,
            half(set(CATALOGUE["engines"]), ("benchmark",)) | {"report"},
            id="how a figure is taken",
        ),
        pytest.param("src/segforge/timing/compare.py", None, set(), id="what no stage runs"),
        pytest.param("stages/report.py", None, {"report"}, id="the report"),
    ],
)
def test_an_edit_reaches_exactly_what_depends_on_it(path: str, key: str | None, expected: set[str]) -> None:
    assert (ROOT / path).exists()
    assert downstream(touched(path, key)) == expected
