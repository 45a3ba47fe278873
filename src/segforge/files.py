"""Files that are whole or absent: written beside the target, then renamed; hashes; JSON and CSV."""

import csv
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segforge.errors import SegforgeError

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    """A free name beside `target`; what a killed run left there under such a name is removed.

    Raises `ValueError` for a target that is itself such a name: what a kill left of it would have a
    name that nobody looks for.
    """
    if TEMPORARY.fullmatch(target.name):
        raise ValueError(f"{target} is a temporary name already: write to it as it is")
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        _remove(stale)
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A path to write to, renamed to `target` when the block ends well and removed when it fails."""
    temporary = _temporary(target)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, renamed to `target` (which it replaces) when the block ends well."""
    temporary = _temporary(target)
    old = target.with_name(f".{target.name}.0{os.getpid()}.tmp")  # the form that the next write clears
    temporary.mkdir()
    try:
        yield temporary
        # A folder cannot be replaced in one step: the old one is renamed first, so that a kill between the
        # two leaves nothing rather than a mixture.
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        if old.exists():
            _remove(old)
    finally:
        if temporary.exists():
            _remove(temporary)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def json_text(value: Any) -> str:
    """`value` as JSON: two spaces, keys in the given order, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path, *, made_by: str) -> Any:
    """The JSON value in `path`; `made_by` is the command that writes it, named when it is missing."""
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="a file that an earlier stage writes", hint=made_by)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise SegforgeError(f"{path} is not valid JSON: {error}", hint=made_by) from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` under `columns`; a missing key or None is an empty cell, a surplus key an error."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, *, made_by: str) -> list[dict[str, str]]:
    """The rows of a CSV file, every cell as text."""
    if not path.is_file():
        raise SegforgeError(f"{path} is missing", expected="a file that an earlier stage writes", hint=made_by)
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
