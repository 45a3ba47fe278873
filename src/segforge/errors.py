"""Errors that a user can mend: what was wrong, what was expected, what to type next."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN = 5  # of a long list


class SegforgeError(Exception):
    """A problem with the input; a stage prints it without a traceback and exits with 1.

    `problem` says what was wrong, `expected` what would have been right, `hint` what to type next.
    """

    def __init__(self, problem: str, *, expected: str = "", hint: str = "") -> None:
        lines = (problem, expected and f"expected: {expected}", hint and f"try: {hint}")
        super().__init__("\n  ".join(line for line in lines if line))


def unknown_name(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> SegforgeError:
    """The error for a name that no registry holds; lists the known names, nearest first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near and not hint:
        hint = f"{kind}={near[0]}"
    return SegforgeError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(names) or '(none)'}", hint=hint)


def missing_extra(package: str, extra: str, purpose: str) -> SegforgeError:
    """The error for an optional package that is not installed; names the extra that brings it."""
    problem, hint = f"{package} is not installed, and {purpose} needs it", f"pip install 'segforge[{extra}]'"
    return SegforgeError(problem, expected=f"the extra {extra!r}", hint=hint)


def few(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of a long list, and how many more there are."""
    shown, more = separator.join(names[:SHOWN]), len(names) - SHOWN
    before = " " if separator == ", " else separator
    return f"{shown}{before}and {more} more" if more > 0 else shown
