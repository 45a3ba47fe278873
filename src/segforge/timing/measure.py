"""How a figure is taken: warm up until it settles, then run on real images for long enough."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TypeVar

from segforge.config.engine import Benchmark
from segforge.datasets.core.images import network_input, read_image
from segforge.datasets.core.index import Sample
from segforge.passport import Array, Passport
from segforge.runtimes.core.base import Runner
from segforge.tasks import task_of

AGREE = 0.02  # two warm-up windows whose medians differ by less have settled
Result = TypeVar("Result")


def runs_of(work: Callable[[], Result], seconds: float, least: int) -> list[Result]:
    """What `work` gives in each run, for `seconds` and for `least` runs at least."""
    results: list[Result] = []
    end = time.perf_counter() + seconds
    while len(results) < least or time.perf_counter() < end:
        results.append(work())
    return results


def warm_up(work: Callable[[], float], settings: Benchmark) -> tuple[float, bool]:
    """Run until `warmup_s` have passed and two windows agree; seconds spent, and whether they did.

    Gives up at `warmup_max_s`. A window is a quarter of `warmup_s`, and three runs at least.
    """
    start, previous = time.perf_counter(), float("nan")  # the first window agrees with nothing
    while True:
        median = statistics.median(runs_of(work, settings.warmup_s / 4, 3))
        spent = time.perf_counter() - start
        settled = abs(median - previous) <= AGREE * previous
        if (settled and spent >= settings.warmup_s) or spent >= settings.warmup_max_s:
            return spent, settled
        previous = median


def samples_of(work: Callable[[], float], settings: Benchmark) -> list[float]:
    """The seconds of each run, for `measure_s` and for `min_samples` runs at least."""
    return runs_of(work, settings.measure_s, settings.min_samples)


def feed(runner: Runner, passport: Passport, samples: Sequence[Sample], batch: int) -> Iterator[dict[str, Array]]:
    """Batches of real images as the engine takes them, prepared once and cycled without end."""
    images = [read_image(sample.image) for sample in samples]
    starts = range(0, max(1, len(images) - batch + 1), batch)
    parts = [[images[(start + i) % len(images)] for i in range(batch)] for start in starts]
    return cycle([{runner.inputs[0].name: network_input(part, passport)} for part in parts])


def latencies(
    runner: Runner, passport: Passport, samples: Sequence[Sample], batch: int
) -> dict[str, Callable[[], float]]:
    """Each latency as a function that runs it once and returns its seconds.

    `compute`: the engine alone, by its device's clock. `transfers_compute`: inputs to the device,
    compute, outputs back. `end_to_end`: image files decoded one after the other, resized, normalised,
    computed, and the class ids or segments brought back to each image's own size.
    """
    inputs = feed(runner, passport, samples, batch)
    runner.run(next(inputs))  # once through every check; the timed runs leave the checks out

    def compute() -> float:
        runner.load(next(inputs))
        return runner.timed_execute()

    def transfers_compute() -> float:
        array = next(inputs)
        start = time.perf_counter()
        runner.run_unchecked(array)
        return time.perf_counter() - start

    end_to_end = EndToEnd(runner, passport, samples, batch)
    return {"compute": compute, "transfers_compute": transfers_compute, "end_to_end": end_to_end}


def compute(runner: Runner, passport: Passport, samples: Sequence[Sample], batch: int) -> Callable[[], tuple[float]]:
    """The latency `compute` alone, as `in_turn` takes it."""
    work = latencies(runner, passport, samples, batch)["compute"]
    return lambda: (work(),)


class EndToEnd:
    """From image files to class ids or segments of each image's own size; `parts` adds up where the time went."""

    def __init__(self, runner: Runner, passport: Passport, samples: Sequence[Sample], batch: int) -> None:
        self._runner, self._passport, self._batch = runner, passport, batch
        self._task = task_of(passport.task)
        self._files = cycle(sample.image for sample in samples)
        self.parts = dict.fromkeys(("before_engine", "engine", "after_engine"), 0.0)  # seconds

    def __call__(self) -> float:
        paths = [next(self._files) for _ in range(self._batch)]
        start = time.perf_counter()
        images = [read_image(path) for path in paths]
        array = network_input(images, self._passport)
        ready = time.perf_counter()
        outputs = self._runner.run_unchecked({self._runner.inputs[0].name: array})
        computed = time.perf_counter()
        for image, prediction in zip(images, self._task.predictions(outputs, self._passport), strict=True):
            self._task.at_size(prediction, *image.shape[:2])
        end = time.perf_counter()
        for name, seconds in zip(self.parts, (ready - start, computed - ready, end - computed), strict=True):
            self.parts[name] += seconds
        return end - start


def throughput(
    runners: Sequence[Runner], passport: Passport, samples: Sequence[Sample], batch: int, settings: Benchmark
) -> tuple[int, float]:
    """Runs done by a thread for each of the open `runners`, and the seconds per run of them all.

    Every stream warms up for `warmup_s`; all start together. What is counted is load, execute, fetch.
    """
    start_line = threading.Barrier(len(runners))

    def stream(runner: Runner) -> tuple[int, float]:
        try:
            inputs = feed(runner, passport, samples, batch)

            def once() -> None:
                runner.run_unchecked(next(inputs))

            runs_of(once, settings.warmup_s, 1)
            start_line.wait()
            begin = time.perf_counter()
            done = len(runs_of(once, settings.measure_s, -(-settings.min_samples // len(runners))))
            return done, done / (time.perf_counter() - begin)
        except BaseException:
            start_line.abort()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(len(runners)) as pool:
        futures = [pool.submit(stream, runner) for runner in runners]
    failed = [error for future in futures if (error := future.exception())]
    if failed:  # the cause, rather than what it did to the streams that waited
        raise min(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    results = [future.result() for future in futures]
    return sum(done for done, _ in results), 1 / sum(rate for _, rate in results)


def in_turn(
    works: Sequence[Callable[[], Sequence[float]]], *, turns: int, runs: int, uncounted: int
) -> list[list[list[float]]]:
    """For each work and each of its `turns` the medians of the parts that it takes, in seconds.

    A turn begins with `uncounted` runs: the threads of the work before still spin down, the caches are its own.
    """
    medians: list[list[list[float]]] = [[] for _ in works]
    for _ in range(turns):
        for work, own in zip(works, medians, strict=True):
            counted = [work() for _ in range(uncounted + runs)][uncounted:]
            own.append([statistics.median(part) for part in zip(*counted, strict=True)])
    return medians
