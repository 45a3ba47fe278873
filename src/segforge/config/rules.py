"""Rules that stand in the field that they guard, and how one refuses a value."""

from collections.abc import Callable, Iterable
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from segforge.errors import SegforgeError, unknown_name

TASKS = ("semantic", "panoptic", "classification")
SPLITS = ("train", "val", "test")


def choice(*known: str, default: str = MISSING) -> Any:
    """A field whose value is one of `known`."""
    return field(default=default, metadata={"known": known})


def ruled(expected: str, fits: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """A field whose value `fits`; `expected` says in words which do. A list is copied for each instance."""
    given: Any = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**given, metadata={"fits": fits, "expected": expected})


def check_fields(part: Any, path: str = "") -> None:
    """Raise `SegforgeError` for the first field of the dataclass `part`, or within it, whose value breaks its rule."""
    for one in fields(part):
        value, name = getattr(part, one.name), f"{path}{one.name}"
        if is_dataclass(value):
            check_fields(value, f"{name}.")
        elif "known" in one.metadata:
            one_of(one.metadata["known"], name, value)
        elif "fits" in one.metadata:
            must(one.metadata["fits"](value), f"{name}={value}", one.metadata["expected"])


def one_of(known: Iterable[str], what: str, value: str) -> None:
    """Raise `SegforgeError` with the known names unless `value` is one."""
    if value not in tuple(known):
        raise unknown_name(what, value, known)


def must(fits: bool, problem: str, expected: str, hint: str = "") -> None:
    """Raise `SegforgeError` saying `problem` and what was `expected` unless it `fits`."""
    if not fits:
        raise SegforgeError(problem, expected=expected, hint=hint)


def known_names(group: str) -> list[str]:
    """Every name that has a file in a folder of conf/."""
    return sorted(path.stem for path in Path("conf", group).glob("*.yaml"))
