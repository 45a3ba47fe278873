"""Files from a mirror, the cache or a URL, never accepted without their SHA-256; and archives."""

import itertools
import os
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from segforge import layout
from segforge.config import Dataset, Download
from segforge.errors import SegforgeError
from segforge.files import atomic_folder, sha256_file
from segforge.progress import say, track

MIRROR = "SEGFORGE_MIRROR"
ATTEMPTS = 5
BACKOFF_S = 1.0  # before the second attempt; doubled after each
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of data
PIECE = 1 << 20


def fetch(download: Download) -> Path:
    """A local file with the wanted SHA-256: from the mirror folder, the cache, or the URL, in this order.

    A download that breaks off is kept as `<sha256>.part` and resumed (HTTP Range). Of a hash that is
    not published whole the first 8 digits or more will do, and the whole one is said. Raises
    `SegforgeError` when no source has the file, when the source gives up, and when the bytes differ:
    then both hashes are named, and what was downloaded is removed.
    """
    if not re.fullmatch("[0-9a-f]{8,64}", download.sha256):
        raise SegforgeError(
            f"{download.name}: sha256 {download.sha256!r}", expected="64 hexadecimal digits, or the first 8 or more"
        )
    found = _fetched(download)
    if len(download.sha256) < 64:
        say(f"{download.name}: only {download.sha256}… of its sha256 is known; this file's is {sha256_file(found)}")
    return found


def _fetched(download: Download) -> Path:
    mirror = os.environ.get(MIRROR)
    if mirror and (found := _in_mirror(Path(mirror).expanduser(), download)):
        return found
    target = layout.DOWNLOADS / download.sha256
    if target.is_file():
        actual = sha256_file(target)
        if actual.startswith(download.sha256):
            return target
        say(f"{target} has sha256 {actual}, which is not its name: removed")
        target.unlink()
    if not download.url:
        raise SegforgeError(
            f"{download.name} has no public address" + (f", and {mirror} does not hold it" if mirror else ""),
            expected=f"a file with sha256 {download.sha256} ({download.name}) in the folder that {MIRROR} names",
            hint=f"put it into a folder, then {MIRROR}=<folder> and the same command",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    say(f"{download.name}: from {download.url} to {target}")
    if urlsplit(download.url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(download.url).path), part)
    else:
        _get(download, part)
    actual = sha256_file(part)
    if not actual.startswith(download.sha256):
        part.unlink()
        raise _wrong_hash(download.url, actual, download, "what was downloaded is removed")
    os.replace(part, target)
    return target


def _wrong_hash(source: str, actual: str, download: Download, consequence: str) -> SegforgeError:
    return SegforgeError(
        f"{source} has sha256 {actual}; {consequence}", expected=f"sha256 {download.sha256} ({download.name})"
    )


def _in_mirror(folder: Path, download: Download) -> Path | None:
    """The file of `folder` with the wanted hash: the one of the same name first, then every other."""
    if not folder.is_dir():
        raise SegforgeError(f"{MIRROR}={folder} is no folder", expected="an existing folder of downloaded files")
    named = folder / download.name
    actual = sha256_file(named) if named.is_file() else ""
    if actual.startswith(download.sha256):
        return named
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path != named)
    for path in track(others, f"{download.name}: searching {folder} by sha256", unit="files"):
        if sha256_file(path).startswith(download.sha256):
            return path
    if actual:
        size = named.stat().st_size
        raise _wrong_hash(f"{named} ({size} bytes)", actual, download, "it is refused: cut short, or another file")
    return None


def _get(download: Download, part: Path) -> None:
    """Download to `part`, going on where an earlier attempt stopped."""
    import requests

    wait_s = BACKOFF_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _get_once(download, part)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            kept = part.stat().st_size if part.exists() else 0
            final = isinstance(error, ValueError) or (400 <= status < 500 and status not in (408, 429))  # a bad URL
            if final or attempt == ATTEMPTS:
                raise SegforgeError(
                    f"{download.url} could not be downloaded: {error}",
                    expected=f"{download.name}, sha256 {download.sha256}; {kept} bytes are kept",
                    hint=f"the same command, which goes on from there; or {MIRROR}=<folder with the file>",
                ) from error
            say(f"{download.name}: {error}; {kept} bytes so far, again in {wait_s:.0f} s ({attempt}/{ATTEMPTS})")
            time.sleep(wait_s)
            wait_s *= 2
    return None


def _get_once(download: Download, part: Path) -> None:
    import requests

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(download.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to get: the hash decides
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-") and have > 0
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else 0
        size = f"{total / 1e6:.1f} MB" if length else "unknown size"
        say(f"{download.name}: {size}" + (f", resumed at {start / 1e6:.1f} MB" if resumed else ""))
        pieces = response.iter_content(PIECE)
        with part.open("ab" if resumed else "wb") as handle:
            for piece in track(pieces, download.name, total=-(-(total - start) // PIECE) or None, unit="MiB"):
                handle.write(piece)
    if total and part.stat().st_size < total:
        raise requests.ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")


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


def obtain(config: Dataset, target: Path, only: Sequence[str] = ("",)) -> None:
    """Fill the new folder `target` from the user's `folder`, or else from the archives.

    Outer folders that hold nothing but one folder are left out, up to where one of the paths `only`
    begins. Of the user's folder these paths are copied, as far as they are there; of an archive all that
    lies beside where they begin is left out. Raises `SegforgeError` when the folder is missing, when two
    archives bring the same name, or when there is no source at all.
    """
    tops = {path.split("/")[0] for path in only}
    if config.folder:
        source = Path(config.folder).expanduser()
        if not source.is_dir():
            raise SegforgeError(
                f"dataset.folder={config.folder} is no folder",
                expected=f"a folder in the layout of {config.name}, or dataset.folder=null for its archive",
            )
        target.mkdir()
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
    if not config.archives:
        raise SegforgeError(f"{config.name} has neither a folder nor archives", hint="dataset.folder=<your copy>")
    target.mkdir()
    for archive in config.archives:
        if archive.licence:
            say(f"{archive.name}: licence {archive.licence}")
        unpacked = target.with_name(f".{target.name}.unpacked")
        extract(fetch(archive), unpacked)
        for entry in _entries(_inner(unpacked, tops)):
            if not tops & {"", entry.name}:
                continue  # such as the README in each archive of Cityscapes
            if (target / entry.name).exists():
                raise SegforgeError(
                    f"{archive.name} brings {entry.name}, which another archive brought already",
                    expected="archives that share no name",
                )
            os.replace(entry, target / entry.name)
        shutil.rmtree(unpacked)


def _inner(folder: Path, tops: set[str]) -> Path:
    entries = _entries(folder)
    outer = len(entries) == 1 and entries[0].is_dir() and entries[0].name not in tops
    return _inner(entries[0], tops) if outer else folder


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
