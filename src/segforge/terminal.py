"""What a user sees at the terminal: lines, progress on long work, tables."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from tabulate import tabulate
from tqdm import tqdm

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line for the user, on stderr, so that stdout stays for results."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def track(
    items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "it", every_s: float = 10.0
) -> Iterator[Item]:
    """Yield `items` and show how far it is: a bar on a terminal, else a line every `every_s` seconds."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=unit, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
            say(f"{what}: {done}{f'/{total}' if total else ''} {unit}{left}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns of plain text: words to the left, figures to the right, each cell as it is given."""
    figures = [all(_is_figure(cell) for cell in column) for column in zip(*rows, strict=True)]
    sides = ["right" if right else "left" for right in figures]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=sides if rows else None)


def _is_figure(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-−").replace(".", "").rstrip("x%").isdigit()
