"""How a graph gets the numeric type of an engine: one table, a way of typing with the precisions that it serves.

The rest of a precision (its budget, ceiling, bytes, mark) is its row in conf/precision/.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx

from segforge.config.engine import Precision, Target
from segforge.errors import SegforgeError, unknown_name
from segforge.passport import Passport
from segforge.precisions.qdq import to_qdq


class Typing(NamedTuple):
    """A way of typing; `typed` None leaves the file as it is: its runtime computes in the type."""

    precisions: tuple[str, ...]
    typed: Callable[[Path, Passport, list[Path], Precision, Target], onnx.ModelProto] | None


TYPINGS = {"as_is": Typing(("fp32", "tf32", "bf16"), None), "qdq": Typing(("int8",), to_qdq)}


def typing_of(precision: Precision) -> Typing:
    """How a graph gets the type of `precision`; raises `SegforgeError` where that way would give it another type."""
    if precision.typing not in TYPINGS:
        raise unknown_name("precision.typing", precision.typing, TYPINGS)
    found = TYPINGS[precision.typing]
    if precision.name not in found.precisions:
        problem = f"precision.typing={precision.typing} gives no graph in {precision.name}"
        raise SegforgeError(problem, expected=f"one of {', '.join(found.precisions)} for that way of typing")
    return found
