"""Files from a mirror, the cache or a URL, never accepted without their SHA-256."""

import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests

from segforge import layout
from segforge.config.recipe import Download
from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.terminal import say, track

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
        expected = "64 hexadecimal digits, or the first 8 or more"
        raise SegforgeError(f"{download.name}: sha256 {download.sha256!r}", expected=expected)
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
        problem = f"{download.name} has no public address" + (f", and {mirror} does not hold it" if mirror else "")
        expected = f"a file with sha256 {download.sha256} ({download.name}) in the folder that {MIRROR} names"
        hint = f"put it into a folder, then {MIRROR}=<folder> and the same command"
        raise SegforgeError(problem, expected=expected, hint=hint)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    say(f"{download.name}: from {download.url} to {target}")
    url = urlsplit(download.url)
    if url.scheme == "file":
        shutil.copyfile(url2pathname(url.path), part)
    else:
        _get(download, part)
    actual = sha256_file(part)
    if not actual.startswith(download.sha256):
        part.unlink()
        raise _wrong_hash(download.url, actual, download, "what was downloaded is removed")
    os.replace(part, target)
    return target


def _wrong_hash(source: str, actual: str, download: Download, consequence: str) -> SegforgeError:
    expected = f"sha256 {download.sha256} ({download.name})"
    return SegforgeError(f"{source} has sha256 {actual}; {consequence}", expected=expected)


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
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _get_once(download, part)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            kept = _size(part)
            final = isinstance(error, ValueError) or (400 <= status < 500 and status not in (408, 429))  # a bad URL
            if final or attempt == ATTEMPTS:
                problem = f"{download.url} could not be downloaded: {error}"
                expected = f"{download.name}, sha256 {download.sha256}; {kept} bytes are kept"
                hint = f"the same command, which goes on from there; or {MIRROR}=<folder with the file>"
                raise SegforgeError(problem, expected=expected, hint=hint) from error
            wait_s = BACKOFF_S * 2 ** (attempt - 1)
            say(f"{download.name}: {error}; {kept} bytes so far, again in {wait_s:.0f} s ({attempt}/{ATTEMPTS})")
            time.sleep(wait_s)
    return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _get_once(download: Download, part: Path) -> None:
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(download.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to get: the hash decides
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-") and have > 0
        start = have if resumed else 0
        length = int(response.headers.get("Content-Length", 0))
        total = start + length if length else 0
        size = f"{total / 1e6:.1f} MB" if total else "unknown size"
        say(f"{download.name}: {size}" + (f", resumed at {start / 1e6:.1f} MB" if resumed else ""))
        pieces = response.iter_content(PIECE)
        with part.open("ab" if resumed else "wb") as handle:
            for piece in track(pieces, download.name, total=-(-length // PIECE) or None, unit="MiB"):
                handle.write(piece)
    if total and part.stat().st_size < total:
        raise requests.ConnectionError(f"broke off after {part.stat().st_size} of {total} bytes")
