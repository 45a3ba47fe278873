"""The whole road on a small `shapes`: it runs, runs nothing twice, and re-runs what an edit reaches."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from small_road import CLASSIFIER, DEEPLAB, ENGINES, deterministic, dvc, edit, environment, make_project, ran

from segforge.files import read_csv, sha256_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("road"))
    output = dvc(folder, "repro")
    assert len(ran(output)) == 2 + 1 + 3 * 2 + 5 * len(ENGINES) + 1
    return folder


def test_every_engine_has_its_row(road: Path) -> None:
    rows = read_csv(road / "metrics/report/figures.csv", made_by="")
    assert {f"{r['variant']}-{r['target']}-{r['precision']}" for r in rows} == set(ENGINES)
    assert {(r["batch"], r["quantity"]) for r in rows} >= {("1", "compute"), ("2", "end_to_end"), ("1", "throughput")}
    for row in rows:
        manifest = road / "models" / row["variant"] / row["target"] / row["precision"] / "manifest.json"
        assert row["engine_sha256"] == json.loads(manifest.read_text())["engine_sha256"]
        assert row["engine_sha256"] == sha256_file(manifest.with_name("engine.bin"))
        assert 0 <= float(row["score"]) <= 1
        assert row["valid"] in ("true", "false")
        assert row["valid"] == "true" or row["reasons"]
        assert row["command"].startswith("python stages/benchmark.py variant=")
    page = (road / "metrics/report/report.html").read_text()
    assert DEEPLAB in page
    assert CLASSIFIER in page


def test_a_second_run_runs_nothing_but_probe(road: Path) -> None:
    assert ran(dvc(road, "repro")) == {"probe"}


def test_by_hand_writes_the_same_bytes_to_the_same_place(road: Path) -> None:
    before = deterministic(road)
    for stage, words in (
        ("download", ["dataset=shapes"]),
        ("train", ["model=classifier", "backbone=mobilenet_v3_small", "dataset=shapes"]),
        ("export", ["model=classifier", "backbone=mobilenet_v3_small", "dataset=shapes"]),
        ("simplify", ["model=classifier", "backbone=mobilenet_v3_small", "dataset=shapes"]),
        ("quantize", [f"variant={CLASSIFIER}", "target=cpu-openvino", "precision=int8"]),
    ):
        command = [sys.executable, f"stages/{stage}.py", *words]
        done = subprocess.run(command, cwd=road, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert deterministic(road) == before
    assert ran(dvc(road, "repro")) == {"probe"}


def test_a_new_budget_runs_the_gate_and_the_report_only(road: Path) -> None:
    edit(road / f"conf/recipe/{DEEPLAB}.yaml", budget__int8=0.19)
    assert ran(dvc(road, "repro")) == {
        "probe",
        f"gate@{DEEPLAB}-cpu-torch-fp32",
        f"gate@{DEEPLAB}-cpu-onnxruntime-int8",
        "report",
    }


def test_a_broken_budget_fails_the_stage_with_the_table(road: Path) -> None:
    edit(road / f"conf/recipe/{DEEPLAB}.yaml", budget__int8=-1.0)
    words = [f"variant={DEEPLAB}", "target=cpu-onnxruntime", "precision=int8"]
    done = subprocess.run(
        [sys.executable, "stages/gate.py", *words], cwd=road, env=environment(), capture_output=True, text=True
    )
    edit(road / f"conf/recipe/{DEEPLAB}.yaml", budget__int8=0.19)
    assert done.returncode == 1
    assert "checkpoint" in done.stderr
    assert "engine" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("evaluate", [f"variant={DEEPLAB}", "target=cpu-onnxruntime", "precision=int8"]),
        ("evaluate", [f"variant={CLASSIFIER}", "target=cpu-openvino", "precision=int8"]),
        ("benchmark", [f"variant={CLASSIFIER}", "target=cpu-openvino", "precision=int8"]),
    ],
)
def test_the_engine_half_starts_in_a_second_and_a_half(stage: str, words: list[str], road: Path) -> None:
    """From the shell to the first line of work, in seconds of one core: what an idle machine takes.

    Of three: what else the machine does slows caches and clocks too.
    """
    took = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, f"stages/{stage}.py", *words],
            cwd=road,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stderr is not None
            assert run.stderr.readline().strip()
            spent = psutil.Process(run.pid).cpu_times()
            took.append(spent.user + spent.system)
            run.terminate()
    assert 0.1 < min(took) < 1.5
