"""How a figure is taken, with a runner of known speed and a clock that only the runs move."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from own_clock import Clock
from tiny_engine import HEIGHT, PASSPORT, WIDTH, write_dataset

from segforge.config.engine import Benchmark
from segforge.datasets.core.index import load_index
from segforge.errors import SegforgeError
from segforge.passport import Array, TensorSpec
from segforge.runtimes.core.base import Runner
from segforge.timing import measure

SETTINGS = Benchmark(
    batches=[1], warmup_s=0.02, warmup_max_s=0.1, measure_s=0.05, min_samples=5, streams=2, images=3, max_cov=0.025
)


class SleepingRunner(Runner):
    """Takes known times: 2 ms to load, 5 ms to compute, 1 ms to fetch."""

    opened = 0

    def open(self) -> None:
        self.opened += 1
        self.closed = False
        self.runs: list[float] = []  # seconds from the begin of load to the end of fetch, as they really were

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        images = TensorSpec("images", "float32", (3, HEIGHT, WIDTH), 1, 4)
        return [images], [TensorSpec("ids", "uint8", (HEIGHT, WIDTH), 1, 4)]

    def load(self, inputs: Mapping[str, Array]) -> None:
        self.batch = inputs["images"].shape[0]
        self.begun = time.perf_counter()
        time.sleep(0.002)

    def execute(self) -> None:
        time.sleep(0.005)

    def fetch(self) -> dict[str, Array]:
        time.sleep(0.001)
        self.runs.append(time.perf_counter() - self.begun)
        return {"ids": np.zeros((self.batch, HEIGHT, WIDTH), np.uint8)}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which this test's figures are taken."""
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


@pytest.fixture
def data(project: Path) -> Path:
    write_dataset()
    return project


def test_the_three_quantities_hold_what_they_say(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        works = measure.latencies(runner, PASSPORT, samples, 2)
        best = {name: min(work() for _ in range(30)) for name, work in works.items()}
    assert list(best) == ["compute", "transfers_compute", "end_to_end"]
    assert 0.005 <= best["compute"] < 0.0075
    assert 0.008 <= best["transfers_compute"] < 0.011
    assert best["end_to_end"] > best["transfers_compute"]


def test_end_to_end_reads_the_files(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        work = measure.latencies(runner, PASSPORT, samples, 1)["end_to_end"]
        for sample in samples:
            sample.image.unlink()
        with pytest.raises(SegforgeError, match="is missing"):
            work()


def test_real_images_are_cycled(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        batches = measure.feed(runner, PASSPORT, samples[:4], 2)
        first, second, third = (next(batches)["images"] for _ in range(3))
    assert first.shape == (2, 3, HEIGHT, WIDTH)
    assert not np.array_equal(first, second)
    assert first is third


def test_streams_overlap(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as one, SleepingRunner() as other:
        opened = [one, other]
        n, run_s = measure.throughput(opened, PASSPORT, samples, 1, SETTINGS)
        assert not any(runner.closed for runner in opened)
    assert n >= SETTINGS.min_samples
    assert run_s >= 0.004  # two streams of 8 ms
    # Against what the runs took on this machine now, and not against 8 ms: other work stretches a sleep.
    alone = [statistics.mean(runner.runs) for runner in opened]
    assert run_s < 0.8 * min(alone)
    assert all(runner.closed for runner in opened)


def test_throughput_takes_runners_that_are_open_already(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as one, SleepingRunner() as other, SleepingRunner() as third:
        for runners in ([one, other], [one, other, third], [third]):
            before = [len(runner.runs) for runner in (one, other, third)]
            n, _ = measure.throughput(runners, PASSPORT, samples, 2, SETTINGS)
            for runner, runs in zip((one, other, third), before, strict=True):
                done = len(runner.runs) - runs
                assert done > -(-SETTINGS.min_samples // len(runners)) if runner in runners else done == 0
            # What is counted is less than what was run: every stream warms up first.
            assert SETTINGS.min_samples <= n < sum(len(r.runs) for r in (one, other, third)) - sum(before)
        assert [runner.opened for runner in (one, other, third)] == [1, 1, 1]


def test_a_failing_stream_does_not_hang_the_others(data: Path) -> None:
    class Failing(SleepingRunner):
        def load(self, inputs: Mapping[str, Array]) -> None:
            raise SegforgeError("no second one")

    samples = load_index("shapes").split("semantic", "test")
    for kinds in ((SleepingRunner, Failing), (Failing, SleepingRunner)):
        with kinds[0]() as one, kinds[1]() as other, pytest.raises(SegforgeError, match="no second one"):
            measure.throughput([one, other], PASSPORT, samples, 1, SETTINGS)


def test_warm_up_ends_when_two_windows_agree(clock: Clock) -> None:
    spent, settled = measure.warm_up(lambda: clock.run(0.001), SETTINGS)
    assert settled
    assert SETTINGS.warmup_s <= spent < SETTINGS.warmup_max_s


def test_one_window_agrees_with_nothing(clock: Clock) -> None:
    """Runs so long that one window outlasts `warmup_s`, each shorter than the one before."""
    falling = iter(0.02 * 0.9**i for i in range(100))
    _, settled = measure.warm_up(lambda: clock.run(next(falling)), SETTINGS)
    assert not settled


def test_warm_up_goes_on_while_it_gets_faster(clock: Clock) -> None:
    speeds = iter(0.003 * 0.9**i for i in range(10_000))

    spent, settled = measure.warm_up(lambda: clock.run(0.001) and next(speeds), SETTINGS)
    assert not settled
    assert spent >= SETTINGS.warmup_max_s


def test_samples_are_enough_in_time_and_number(clock: Clock) -> None:
    assert measure.samples_of(lambda: clock.run(0.02), SETTINGS) == [0.02] * SETTINGS.min_samples
    many = measure.samples_of(lambda: clock.run(0.001), SETTINGS)
    assert len(many) == pytest.approx(SETTINGS.measure_s / 0.001, abs=1)


def test_classifiers_are_timed_end_to_end(data: Path) -> None:
    class Logits(SleepingRunner):
        def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
            inputs, _ = super().describe()
            return inputs, [TensorSpec("logits", "float32", (5,), 1, 4)]

        def fetch(self) -> dict[str, Array]:
            return {"logits": np.zeros((self.batch, 5), np.float32)}

    samples = load_index("shapes").split("semantic", "test")
    with Logits() as runner:
        work = measure.latencies(runner, replace(PASSPORT, task="classification"), samples, 1)["end_to_end"]
        assert work() > 0.007


def test_in_turn_gives_medians_per_part_and_turn() -> None:
    order = ""

    def work(name: str, *runs: tuple[float, ...]) -> Callable[[], tuple[float, ...]]:
        left = iter(runs)

        def once() -> tuple[float, ...]:
            nonlocal order
            order += name
            return next(left)

        return once

    first = work("a", (99, 0), (1, 30), (3, 10), (2, 20), (0, 99), (5, 50), (4, 90), (9, 40))
    second = work("b", (99,), (7,), (7,), (8,), (0,), (6,), (5,), (1,))
    turns = measure.in_turn([first, second], turns=2, runs=3, uncounted=1)
    assert turns == [[[2, 20], [5, 50]], [[7], [5]]]
    assert order == "aaaabbbbaaaabbbb"


def test_compute_is_the_latency_as_in_turn_takes_it(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        work = measure.compute(runner, PASSPORT, samples, 1)
        ((own,),) = measure.in_turn([work], turns=1, runs=3, uncounted=1)
        assert len(runner.runs) == 1  # the one that is checked; `compute` fetches nothing
    assert 0.005 <= own[0] < 0.1
