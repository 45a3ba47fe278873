"""Percentiles that the samples support, and each reason against a figure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segforge.timing.verdict import Circumstances, coefficient_of_variation, percentiles, reasons_against


@pytest.mark.parametrize(("n", "supported"), [(0, 0), (9, 0), (10, 1), (99, 1), (100, 2), (999, 2), (1000, 3)])
def test_percentiles_need_samples(n: int, supported: int) -> None:
    found = percentiles([0.001 * (i + 1) for i in range(n)])
    assert list(found) == ["p50_ms", "p90_ms", "p99_ms"]
    assert [value is not None for value in found.values()] == [True] * supported + [False] * (3 - supported)


def test_percentiles_are_in_milliseconds() -> None:
    seconds = [i / 1000 for i in range(1, 1002)]
    assert percentiles(seconds) == pytest.approx({"p50_ms": 501.0, "p90_ms": 901.0, "p99_ms": 991.0})


def judge(n: int = 100, run_ms: float = 2.0, cov: float | None = 0.01, **seen: object) -> list[str]:
    return reasons_against(n, run_ms, cov, Circumstances(**seen), min_samples=10, max_cov=0.025)  # type: ignore[arg-type]


def test_a_clean_figure_has_no_reason_against_it() -> None:
    assert judge(limit_ms=1.0) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 9}, "9 samples of at least 10"),
        ({"cov": 0.026}, "coefficient of variation 2.6% over 2.5%"),
        ({"settled": False}, "warm-up did not settle"),
        ({"others": 0.2}, "other processes took 20% of the cores"),
        ({"throttled": ["hw_slowdown"]}, "GPU slowed down, or was not watched: hw_slowdown"),
        ({"outputs": "differ"}, "outputs differ from the scored run"),
        ({"outputs": "unscored"}, "not scored"),
        ({"limit_ms": 2.1}, "faster than the limit"),
    ],
)
def test_each_reason(arguments: dict[str, object], word: str) -> None:
    (reason,) = judge(**arguments)  # type: ignore[arg-type]
    assert word in reason


def test_reasons_add_up() -> None:
    assert len(judge(n=3, cov=0.5, others=0.9, settled=False, outputs="differ")) == 5


def test_decoding_files_may_vary() -> None:
    assert judge(cov=0.5, steady=False) == []


def test_one_interrupt_is_not_an_unsteady_machine_but_a_slow_stretch_is() -> None:
    steady = [0.0002] * 5000
    with_interrupt = [*steady[:2500], 0.001, *steady[2500:]]
    with_stretch = [*steady[:4000], *([0.0004] * 500), *steady[4500:]]
    assert (coefficient_of_variation(with_interrupt) or 1) < 0.025
    assert (coefficient_of_variation(with_stretch) or 0) > 0.025
    long_runs = [0.1] * 30 + [0.2] * 2
    assert coefficient_of_variation(long_runs) == pytest.approx(np.std(long_runs, ddof=1) / np.mean(long_runs))


@given(st.lists(st.floats(1e-5, 1.0), min_size=20, max_size=200), st.floats(0.1, 10))
def test_variation_does_not_depend_on_the_unit_when_runs_are_long(seconds: list[float], factor: float) -> None:
    long = [1 + value for value in seconds]
    scaled = [factor * value for value in long]
    assert coefficient_of_variation(scaled) == pytest.approx(coefficient_of_variation(long), rel=1e-6, abs=1e-9)


def test_too_few_runs_have_no_variation() -> None:
    assert coefficient_of_variation([]) is None
    assert coefficient_of_variation([0.1]) is None
