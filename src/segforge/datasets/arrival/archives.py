"""A data set's files out of archives or of a folder of the user's."""

import itertools
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from segforge.config.recipe import Dataset
from segforge.errors import SegforgeError
from segforge.fetch import fetch
from segforge.files import atomic_folder
from segforge.terminal import say, track


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file as `folder`, whole or not at all.

    Raises `SegforgeError` when the archive is damaged, or when a member would land outside `folder`
    or is a device (tarfile's `data` filter; for zip any absolute path or `..`).
    """
    with atomic_folder(folder) as inside:
        try:
            if tarfile.is_tarfile(archive):
                with tarfile.open(archive) as tar:
                    members = track(tar, f"{archive.name}: extracting", unit="files")
                    tar.extractall(inside, members=members, filter="data")
            else:
                with zipfile.ZipFile(archive) as packed:
                    for name in packed.namelist():
                        if not (inside / name.replace("\\", "/")).resolve().is_relative_to(inside.resolve()):
                            raise _outside(archive, name)
                    packed.extractall(inside)
        except tarfile.FilterError as error:
            raise _outside(archive, str(error)) from error
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise SegforgeError(f"{archive} cannot be unpacked: {error}", expected="a whole tar or zip file") from error


def _outside(archive: Path, member: str) -> SegforgeError:
    return SegforgeError(f"{archive} is refused: {member}", expected="members inside the archive's own folder only")


def obtain(config: Dataset, target: Path, only: Sequence[str] = ("",), reason: str = "", layout: str = "") -> None:
    """Fill the new folder `target` from the user's `folder`, or else from the archives.

    Outer folders that hold nothing but one folder are left out, up to where one of the paths `only`
    begins. Of the user's folder these paths are copied, as far as they are there; of an archive all that
    lies beside where they begin is left out. Raises `SegforgeError` when the folder is missing, when two
    archives bring the same name, or when there is no source at all: then `reason` says why there is none to
    fetch, and `layout` what the user's folder must hold.
    """
    if not (config.folder or config.archives):
        hint = f"python stages/download.py dataset={config.name} dataset.folder=<that folder>"
        problem, holds = reason or f"{config.name} has neither a folder nor archives", layout or "its files"
        raise SegforgeError(problem, expected=f"your own copy: a folder with {holds}", hint=hint)
    tops = {path.split("/")[0] for path in only}
    target.mkdir()
    if config.folder:
        source = Path(config.folder).expanduser()
        if not source.is_dir():
            expected = f"a folder in the layout of {config.name}, or dataset.folder=null for its archive"
            raise SegforgeError(f"dataset.folder={config.folder} is no folder", expected=expected)
        ticks = track(itertools.count(), f"{config.name}: copying", unit="files")

        def copy(file: str, to: str) -> None:
            shutil.copy2(file, to)
            next(ticks)

        hidden = shutil.ignore_patterns(".*")
        for path in only:
            wanted, to = _inner(source, tops) / path, target / path
            if wanted.is_dir():
                shutil.copytree(wanted, to, ignore=hidden, copy_function=copy, dirs_exist_ok=True)
            elif wanted.is_file():
                to.parent.mkdir(parents=True, exist_ok=True)
                copy(str(wanted), str(to))
        return
    for archive in config.archives:
        if archive.licence:
            say(f"{archive.name}: licence {archive.licence}")
        unpacked = target.with_name(f".{target.name}.unpacked")
        extract(fetch(archive), unpacked)
        for entry in _entries(_inner(unpacked, tops)):
            if not tops & {"", entry.name}:
                continue  # such as the README in each archive of Cityscapes
            if (target / entry.name).exists():
                problem = f"{archive.name} brings {entry.name}, which another archive brought already"
                raise SegforgeError(problem, expected="archives that share no name")
            os.replace(entry, target / entry.name)
        shutil.rmtree(unpacked)


def _inner(folder: Path, tops: set[str]) -> Path:
    entries = _entries(folder)
    outer = len(entries) == 1 and entries[0].is_dir() and entries[0].name not in tops
    return _inner(entries[0], tops) if outer else folder


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
