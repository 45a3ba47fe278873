"""What every stage reads images through."""

import pytest

from segforge.datasets.core.images import prefetch


def test_prefetch_keeps_the_order_and_passes_errors_on() -> None:
    assert list(prefetch(range(20), lambda i: i * 2)) == list(range(0, 40, 2))
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0, 1], lambda i: 1 // i))
