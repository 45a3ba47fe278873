"""How a figure is taken: warm up until it settles, then run on real images for long enough."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

from segforge.config import Benchmark
from segforge.datasets.base import Sample, read_image
from segforge.datasets.preprocess import network_input, resize_ids
from segforge.onnx.metadata import OnnxMetadata
from segforge.runtimes.base import Array, Runner
from segforge.scores.decode import class_ids, segments_of

AGREE = 0.02  # two warm-up windows whose medians differ by less have settled


def warm_up(work: Callable[[], float], settings: Benchmark) -> tuple[float, bool]:
    """Run until `warmup_s` have passed and two windows agree; seconds spent, and whether they did.

    Gives up at `warmup_max_s`. A window is a quarter of `warmup_s`, and three runs at least.
    """
    start, previous = time.perf_counter(), float("nan")  # the first window agrees with nothing
    while True:
        window: list[float] = []
        begin = time.perf_counter()
        while len(window) < 3 or time.perf_counter() - begin < settings.warmup_s / 4:
            window.append(work())
        median, spent = statistics.median(window), time.perf_counter() - start
        settled = abs(median - previous) <= AGREE * previous
        if (settled and spent >= settings.warmup_s) or spent >= settings.warmup_max_s:
            return spent, settled
        previous = median


def samples_of(work: Callable[[], float], settings: Benchmark) -> list[float]:
    """The seconds of each run, for `measure_s` and for `min_samples` runs at least."""
    seconds: list[float] = []
    end = time.perf_counter() + settings.measure_s
    while len(seconds) < settings.min_samples or time.perf_counter() < end:
        seconds.append(work())
    return seconds


def feed(runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int) -> Iterator[dict[str, Array]]:
    """Batches of real images as the engine takes them, prepared once and cycled without end."""
    images = [read_image(sample.image) for sample in samples]
    starts = range(0, max(1, len(images) - batch + 1), batch)
    parts = [[images[(start + i) % len(images)] for i in range(batch)] for start in starts]
    return cycle([{runner.inputs[0].name: network_input(part, metadata)} for part in parts])


def latencies(
    runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int
) -> dict[str, Callable[[], float]]:
    """Each latency as a function that runs it once and returns its seconds.

    `compute`: the engine alone, by its device's clock. `transfers_compute`: inputs to the device,
    compute, outputs back. `end_to_end`: image files decoded one after the other, resized, normalised,
    computed, and the class ids or segments brought back to each image's own size.
    """
    inputs = feed(runner, metadata, samples, batch)
    runner.run(next(inputs))  # once through every check; the timed runs leave the checks out

    def compute() -> float:
        runner.load(next(inputs))
        return runner.timed_execute()

    def transfers_compute() -> float:
        array = next(inputs)
        start = time.perf_counter()
        runner.load(array)
        runner.execute()
        runner.fetch()
        return time.perf_counter() - start

    return {
        "compute": compute,
        "transfers_compute": transfers_compute,
        "end_to_end": EndToEnd(runner, metadata, samples, batch),
    }


class EndToEnd:
    """From image files to class ids or segments of each image's own size; `parts` adds up where the time went."""

    def __init__(self, runner: Runner, metadata: OnnxMetadata, samples: Sequence[Sample], batch: int) -> None:
        self._runner, self._metadata, self._batch = runner, metadata, batch
        self._files = cycle(sample.image for sample in samples)
        self.parts = dict.fromkeys(("before_engine", "engine", "after_engine"), 0.0)  # seconds

    def __call__(self) -> float:
        paths = [next(self._files) for _ in range(self._batch)]
        start = time.perf_counter()
        images = [read_image(path) for path in paths]
        array = network_input(images, self._metadata)
        ready = time.perf_counter()
        self._runner.load({self._runner.inputs[0].name: array})
        self._runner.execute()
        outputs = self._runner.fetch()
        computed = time.perf_counter()
        if self._metadata.task == "panoptic":
            for image, (ids, _) in zip(images, segments_of(outputs, self._metadata), strict=True):
                resize_ids(ids, *image.shape[:2])
        else:
            found = class_ids(outputs, self._metadata)
            for image, prediction in zip(images, found if found.ndim == 3 else (), strict=False):
                resize_ids(prediction, *image.shape[:2])
        end = time.perf_counter()
        for name, seconds in zip(self.parts, (ready - start, computed - ready, end - computed), strict=True):
            self.parts[name] += seconds
        return end - start


def throughput(
    open_stream: Callable[[], Runner],
    metadata: OnnxMetadata,
    samples: Sequence[Sample],
    batch: int,
    settings: Benchmark,
) -> tuple[int, float]:
    """Runs done by `settings.streams` threads with a runner each, and the seconds per run of them all.

    Every stream warms up for `warmup_s`; all start together. What is counted is load, execute, fetch.
    """
    start_line = threading.Barrier(settings.streams)
    wanted = -(-settings.min_samples // settings.streams)

    def stream() -> tuple[int, float]:
        try:
            with open_stream() as runner:
                inputs = feed(runner, metadata, samples, batch)

                def once() -> None:
                    runner.load(next(inputs))
                    runner.execute()
                    runner.fetch()

                begin = time.perf_counter()
                once()
                while time.perf_counter() - begin < settings.warmup_s:
                    once()
                start_line.wait()
                done, begin = 0, time.perf_counter()
                while done < wanted or time.perf_counter() - begin < settings.measure_s:
                    once()
                    done += 1
                return done, done / (time.perf_counter() - begin)
        except BaseException:
            start_line.abort()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(settings.streams) as pool:
        futures = [pool.submit(stream) for _ in range(settings.streams)]
    failed = [error for future in futures if (error := future.exception())]
    if failed:  # the cause, rather than what it did to the streams that waited
        raise min(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    results = [future.result() for future in futures]
    return sum(done for done, _ in results), 1 / sum(rate for _, rate in results)
