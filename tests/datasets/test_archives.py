"""Archives are unpacked whole or not at all, and never outside their folder; the stage brings a data set in."""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from segforge.datasets.arrival.archives import extract
from segforge.errors import SegforgeError

Stage = Callable[..., CompletedProcess[str]]


def tar_with(path: Path, member: tarfile.TarInfo, data: bytes = b"") -> Path:
    member.size = len(data)
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO(data))
    return path


def test_extract_tar_and_zip(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "a.tar", tarfile.TarInfo("in/side.txt"), b"hello")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("in/side.txt", b"hello")
    for source in (archive, tmp_path / "a.zip"):
        extract(source, tmp_path / "out")
        assert (tmp_path / "out" / "in" / "side.txt").read_bytes() == b"hello"


@pytest.mark.parametrize("name", ["../evil.txt", "/nowhere/evil.txt", "in/../../evil.txt", "..\\evil.txt"])
def test_archives_that_reach_outside_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(zipfile.ZipInfo("fine.txt"), b"")
        packed.writestr(zipfile.ZipInfo(name), b"evil")
    sources = [tmp_path / "a.zip"]
    if name.startswith((".", "in")) and "\\" not in name:  # tarfile makes absolute names relative by itself
        sources.append(tar_with(tmp_path / "a.tar", tarfile.TarInfo(name), b"evil"))
    for source in sources:
        with pytest.raises(SegforgeError, match="refused"):
            extract(source, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "deep" / "out").exists()


def test_a_link_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, "../../etc"
    with pytest.raises(SegforgeError, match="refused"):
        extract(tar_with(tmp_path / "a.tar", member), tmp_path / "out")


def test_damaged_archives_leave_nothing(tmp_path: Path) -> None:
    for kind in ("w", "w:gz"):
        with tarfile.open(tmp_path / "a.tar", kind) as tar:
            for number in range(20):
                member = tarfile.TarInfo(f"{number}")
                member.size = 5000
                tar.addfile(member, io.BytesIO(os.urandom(5000)))
        whole = (tmp_path / "a.tar").read_bytes()
        (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SegforgeError, match="cannot be unpacked"):
            extract(tmp_path / "a.tar", tmp_path / "out")
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(SegforgeError, match="cannot be unpacked"):
        extract(tmp_path / "a.tar", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_stage_brings_an_archive_from_the_mirror(stage: Stage, camvid_folder: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with tarfile.open(mirror / "mine.tar", "w") as tar:
        tar.add(camvid_folder, "CamVid")
    sha256 = hashlib.sha256((mirror / "mine.tar").read_bytes()).hexdigest()
    archive = f"dataset.archives=[{{name: camvid.tar, sha256: {sha256}}}]"
    done = stage(
        "download", "dataset=camvid", archive, "dataset.height=36", "dataset.width=48", SEGFORGE_MIRROR=str(mirror)
    )
    assert done.returncode == 0, done.stderr
    assert "3 train, 3 val, 3 test" in done.stderr
    assert sorted(path.name for path in (tmp_path / "data" / "camvid").iterdir()) == ["CamVid", "index.json"]


def test_the_stage_fails_plainly(stage: Stage, tmp_path: Path) -> None:
    done = stage("download", "dataset=camvid", SEGFORGE_MIRROR="")
    assert done.returncode == 1
    assert "SEGFORGE_MIRROR=<folder>" in done.stderr
    assert "Traceback" not in done.stderr
    done = stage("download", "dataset=camvid", "dataset.folder=nowhere")
    assert done.returncode == 1
    assert "nowhere is no folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "camvid").exists()
