"""Fixtures that every room shares."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from segforge.config.compose import register
from segforge.machine.identity import gpus

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """One core for each worker of pytest-xdist, and for what it starts: threads of two workers on one core spin.

    So do two threads of one worker, where a test asks for two: they are told to sleep instead.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported, which is later
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones come first, so that no worker is left alone with them; `gpu` tests say why they skip."""
    items.sort(key=lambda item: "slow" not in item.keywords)
    if gpus():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU here: NVML sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working copy of the project (conf, stages, catalogue), and the current folder."""
    for name in ("conf", "pipeline", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stage(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage script of the working copy as a user would: `stage("train", "model=…")`."""

    def run(name: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"stages/{name}.py", *overrides],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def composed() -> Iterator[Callable[..., object]]:
    """Compose a primary config: `composed("network", ["model=classifier"])`; `choices=True` adds `hydra`."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):

        def run(name: str, overrides: list[str] | None = None, *, choices: bool = False) -> object:
            return compose(name, overrides or [], return_hydra_config=choices)

        yield run
