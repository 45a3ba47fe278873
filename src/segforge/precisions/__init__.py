"""How a graph gets the numeric type of an engine: one table, a way of typing with the types that it gives.

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

    gives: tuple[str, ...]  # arithmetic of an engine of its graphs
    typed: Callable[[Path, Passport, list[Path], Precision, Target], onnx.ModelProto] | None


TYPINGS = {"as_is": Typing(("fp32", "tf32", "bf16"), None), "qdq": Typing(("int8",), to_qdq)}


def typing_of(precision: Precision) -> Typing:
    """How a graph gets the type of `precision`; raises `SegforgeError` where that way would give it another type."""
    if precision.typing not in TYPINGS:
        raise unknown_name("precision.typing", precision.typing, TYPINGS)
    found = TYPINGS[precision.typing]
    if precision.arithmetic not in found.gives:
        problem = f"precision.typing={precision.typing} gives no graph in {precision.arithmetic}"
        raise SegforgeError(problem, expected=f"one of {', '.join(found.gives)} for that way of typing")
    return found
