"""The whole road under SIGKILL: nothing half-written is ever taken for whole."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_road import RUNNING, deterministic, dvc, environment, make_project, ran

KILLS = 50
pytestmark = pytest.mark.slow


def stage_processes(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """The stage that DVC runs at this moment, its shell and whatever it started."""
    try:
        children = psutil.Process(run.pid).children(recursive=True)
        return children if any("stages/" in " ".join(child.cmdline()) for child in children) else []
    except psutil.NoSuchProcess:
        return []


def test_fifty_kills_leave_nothing_that_a_later_stage_takes_wrongly(tmp_path: Path) -> None:
    """SIGKILL to the running stage at random moments; then one run completes, with the artifacts of one left alone."""
    folder, alone = make_project(tmp_path / "killed"), make_project(tmp_path / "alone")
    dvc(alone, "repro")
    seed = int(os.environ.get("SEGFORGE_KILL_SEED", time.time_ns() % 2**32))
    print(f"SEGFORGE_KILL_SEED={seed}")
    draw = random.Random(seed)
    killed: list[str] = []
    command = [sys.executable, "-m", "dvc", "repro"]
    while len(killed) < KILLS:
        passes = draw.randint(0, 1)  # stages that may end well before the blow, so that the road goes on
        with subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            assert run.stdout is not None
            seen, victims = [], []
            for line in run.stdout:
                seen.append(line)
                if (started := RUNNING.match(line)) and (passes := passes - 1) < -1:
                    time.sleep(draw.uniform(0.0, 2.5))
                    victims = stage_processes(run)
                    for process in victims:
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.send_signal(signal.SIGKILL)
                    if victims:
                        killed.append(started[1])
                        passes = KILLS  # one kill a run: its failure ends it
        if run.returncode:
            assert victims, f"it failed without a kill:\n{''.join(seen)[-3000:]}"
        else:  # it came to its end: start over, so that every kill falls into real work
            for name in ("models", "metrics", ".dvc/cache"):
                shutil.rmtree(folder / name, ignore_errors=True)
    print(f"killed: {', '.join(killed)}")
    assert len({name.split("@")[0] for name in killed}) >= 6, killed
    dvc(folder, "repro")
    assert deterministic(folder) == deterministic(alone)
    assert ran(dvc(folder, "repro")) == {"probe"}
    assert not [p for p in folder.rglob(".*.tmp") if ".dvc" not in p.parts]
