"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segforge import files


def test_a_failure_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"old": 1})
    with pytest.raises(OSError, match="No space left"), files.atomic_file(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert files.read_json(target, made_by="x") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with files.atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), files.atomic_folder(target) as temporary:
        (temporary / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["a"]
    with files.atomic_folder(target) as temporary:
        (temporary / "c").write_text("3")
    assert [p.name for p in target.iterdir()] == ["c"]
    assert os.listdir(tmp_path) == ["set"]


def test_a_kill_while_a_folder_is_replaced_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder is renamed in one step; what is deleted file by file has no name that anybody reads."""
    target = tmp_path / "a[1]"
    target.mkdir()
    (target / "old").write_text("1")

    def killed(path: Path) -> None:
        assert path != target
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "_remove", killed)
        with pytest.raises(KeyboardInterrupt), files.atomic_folder(target) as temporary:
            (temporary / "new").write_text("2")
    assert os.listdir(target) == ["new"]
    with files.atomic_folder(target):
        pass
    assert os.listdir(tmp_path) == ["a[1]"]


def test_what_a_kill_left_is_cleared_by_the_next_write(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from segforge import files\n"
        f"with files.atomic_file(Path({str(tmp_path / 'x')!r})) as t:\n"
        "    t.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
    time.sleep(0.05)
    assert not (tmp_path / "x").exists()
    assert len(os.listdir(tmp_path)) == 1
    files.write_text(tmp_path / "x", "whole")
    assert os.listdir(tmp_path) == ["x"]


def test_a_temporary_name_gets_no_temporary_of_its_own(tmp_path: Path) -> None:
    """What a kill left of it would be cleared by nobody."""
    with files.atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("whole")
        with pytest.raises(ValueError, match="temporary name already"):
            files.write_text(temporary, "again")
    assert os.listdir(tmp_path) == ["x"]


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_csv_takes_no_surplus_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in fieldnames"):
        files.write_csv(tmp_path / "a.csv", ["a"], [{"a": 1, "b": 2}])
    files.write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": 1, "b": None}])
    assert (tmp_path / "a.csv").read_text() == "a,b\n1,\n"
