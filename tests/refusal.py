"""What every data set does with what it cannot take."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segforge.errors import SegforgeError


def refused(work: Callable[[], object], *said: str) -> None:
    """`work` must raise an error that says all of `said`, and leave no data set behind."""
    with pytest.raises(SegforgeError) as error:
        work()
    for words in said:
        assert words in str(error.value)
    assert ".tmp" not in str(error.value)
    assert not Path("data").exists() or list(Path("data").iterdir()) == []
