"""Timing with a runner of known speed, and the whole stage on a tiny engine."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engine import HEIGHT, METADATA, WIDTH, engine_config, write_dataset, write_typed

from segforge import layout
from segforge.config import Benchmark, EngineConfig, MachineConfig
from segforge.datasets.base import load_index
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json, write_json
from segforge.runtimes.base import Array, Runner, TensorSpec, usable_cores
from segforge.runtimes.build import build_engine, open_engine, paths_of
from segforge.scores.evaluate import outputs_digest, require_batches
from segforge.timing import ceilings, measure, state
from segforge.timing.benchmark import COLUMNS, LAYER_COLUMNS, benchmark
from segforge.timing.ceilings import best_seconds, measure_ceilings
from segforge.timing.probe import probe
from segforge.timing.state import CpuWatch, GpuWatch

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Benchmark(
    batches=[1], warmup_s=0.02, warmup_max_s=0.1, measure_s=0.05, min_samples=5, streams=2, images=3, max_cov=0.025
)


class SleepingRunner(Runner):
    """Takes known times: 2 ms to load, 5 ms to compute, 1 ms to fetch."""

    def open(self) -> None:
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


class Clock:
    """A clock that only its own runs move: other work on the machine stretches a sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def run(self, seconds: float) -> float:
        self.now += seconds
        return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which this test's figures are taken."""
    made = Clock()
    for module in (measure, ceilings):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def data(project: Path) -> Path:
    write_dataset()
    return project


def test_the_three_quantities_hold_what_they_say(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        works = measure.latencies(runner, METADATA, samples, 2)
        best = {name: min(work() for _ in range(30)) for name, work in works.items()}
    assert list(best) == ["compute", "transfers_compute", "end_to_end"]
    assert 0.005 <= best["compute"] < 0.0075
    assert 0.008 <= best["transfers_compute"] < 0.011
    assert best["end_to_end"] > best["transfers_compute"]


def test_end_to_end_reads_the_files(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        work = measure.latencies(runner, METADATA, samples, 1)["end_to_end"]
        for sample in samples:
            sample.image.unlink()
        with pytest.raises(SegforgeError, match="is missing"):
            work()


def test_real_images_are_cycled(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with SleepingRunner() as runner:
        batches = measure.feed(runner, METADATA, samples[:4], 2)
        first, second, third = (next(batches)["images"] for _ in range(3))
    assert first.shape == (2, 3, HEIGHT, WIDTH)
    assert not np.array_equal(first, second)
    assert first is third


def test_streams_overlap(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    opened: list[SleepingRunner] = []

    def open_stream() -> Runner:
        opened.append(SleepingRunner())
        return opened[-1]

    n, run_s = measure.throughput(open_stream, METADATA, samples, 1, SETTINGS)
    assert n >= SETTINGS.min_samples
    assert len(opened) == 2
    assert run_s >= 0.004  # two streams of 8 ms
    # Against what the runs took on this machine now, and not against 8 ms: other work stretches a sleep.
    alone = [statistics.mean(runner.runs) for runner in opened]
    assert run_s < 0.8 * min(alone)
    assert all(runner.closed for runner in opened)


def test_a_failing_stream_does_not_hang_the_others(data: Path) -> None:
    samples = load_index("shapes").split("semantic", "test")
    turns = iter([SleepingRunner(), None])

    def open_stream() -> Any:
        runner = next(turns)
        if runner is None:
            raise SegforgeError("no second one")
        return runner

    with pytest.raises(SegforgeError, match="no second one"):
        measure.throughput(open_stream, METADATA, samples, 1, SETTINGS)


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


def test_best_seconds_is_the_undisturbed_run(clock: Clock) -> None:
    waits = iter([0.001, 0.02, 0.005, 0.02, 0.02])  # the first only warms up
    assert best_seconds(lambda: clock.run(next(waits)), 0.06) == pytest.approx(0.005)
    assert not list(waits)


@pytest.mark.parametrize("batches", [[0], [1, 5], [8]])
def test_a_batch_outside_the_range_is_an_error(batches: list[int]) -> None:
    with pytest.raises(SegforgeError, match="from 1 to 4"):
        require_batches(batches, METADATA)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_other_processes_are_seen() -> None:
    import subprocess

    with CpuWatch() as watch:
        subprocess.run(
            [sys.executable, "-c", "import time; e = time.time() + .5\nwhile time.time() < e: pass"], check=True
        )
    assert watch.others > 0.02 + 0.2 / usable_cores()


def test_own_work_is_not_held_against_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "busy_seconds", time.process_time)
    with CpuWatch() as watch:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass
    assert watch.others == 0
    assert set(watch.record()) == {"others", "clock_mhz"}


def test_a_gpu_that_slows_down_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!{sys.executable}\nimport time\n"
        "for clock, state in ((1980, 'Not Active'), (1200, 'Active')):\n"
        "    print(f'{clock}, 300.5, 60, Not Active, {state}, Not Active, Not Active', flush=True)\n"
        f"open({str(tmp_path / 'printed')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch(active=True) as watch:
        end = time.monotonic() + 60
        while not (tmp_path / "printed").exists() and time.monotonic() < end:
            time.sleep(0.01)
    assert watch.throttled() == ["hw_slowdown"]
    assert watch.record()["clocks.sm"] == [1200.0, 1980.0]
    with GpuWatch(active=False) as idle:
        pass
    assert idle.throttled() == []
    tool.write_text("#!/bin/sh\nexit 2\n")
    with GpuWatch(active=True) as blind:
        pass
    assert blind.throttled() == ["no sample from nvidia-smi"]


@pytest.fixture
def engine(data: Path) -> EngineConfig:
    """A built tiny engine with ceilings and the hashes of its scored outputs."""
    config = engine_config(ROOT, "target=cpu-onnxruntime")
    write_typed(config)
    probe(MachineConfig())
    write_json(
        layout.CEILINGS,
        {"cpu": {"gflops": {"fp32": 1e5, "int8": 1e5}, "copy_gib_s": {"1": 1e4}}},
    )
    build_engine(config)
    write_scored(config)
    return config


def write_scored(config: EngineConfig, **changes: str) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with open_engine(config) as runner:
        hashes = {str(b): outputs_digest(runner, METADATA, samples, b, 4) for b in config.benchmark.batches}
    write_json(paths_of(config).detail("evaluate", "outputs.json"), {"images": 4, "sha256": {**hashes, **changes}})


def rows_of(config: EngineConfig) -> list[dict[str, str]]:
    return read_csv(paths_of(config).detail("benchmark", "sweep.csv"), made_by="")


def test_the_whole_stage(engine: EngineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(engine)
    paths = paths_of(engine)
    rows = rows_of(engine)
    assert tuple(rows[0]) == COLUMNS
    quantities = ["compute", "transfers_compute", "end_to_end", "throughput"]
    assert [(r["batch"], r["quantity"]) for r in rows] == [(b, q) for b in "12" for q in quantities]
    for row in rows:
        assert (row["valid"] == "true") == (row["reasons"] == "")
        assert "outputs" not in row["reasons"]
        assert float(row["throughput_fps"]) > 0
        assert int(row["n"]) >= engine.benchmark.min_samples
        assert (row["p50_ms"] == "") == (row["quantity"] == "throughput")
        assert (row["limit_ms"] == "") == (row["quantity"] == "end_to_end")
    metrics = read_json(paths.metrics("benchmark"), made_by="")
    assert set(metrics) == {"latency_ms", "throughput_fps", "limit_fraction", "valid", "engine_sha256"}
    assert metrics["latency_ms"]["p50"] == float(rows[0]["p50_ms"])
    assert 0 < metrics["limit_fraction"] < 1
    layers = read_csv(paths.detail("benchmark", "layers.csv"), made_by="")
    assert tuple(layers[0]) == LAYER_COLUMNS
    assert [layer["operator"] for layer in layers] == ["Conv", "Conv", "ArgMax"]
    record = json.loads(paths.detail("benchmark", "record.json").read_text())
    assert record["engine_sha256"] == metrics["engine_sha256"]
    assert record["flags"]["intra_op_threads"] >= 1
    assert len(record["figures"]) == 8
    assert "batch 1: compute" in capsys.readouterr().err


def test_other_outputs_than_the_scored_ones_are_said(engine: EngineConfig) -> None:
    write_scored(engine, **{"2": "0" * 64})
    benchmark(engine)
    for row in rows_of(engine):
        assert ("outputs differ" in row["reasons"]) == (row["batch"] == "2")


def test_an_unscored_batch_is_said(engine: EngineConfig) -> None:
    engine.benchmark.batches = [1, 3]
    benchmark(engine)
    for row in rows_of(engine):
        assert ("not scored" in row["reasons"]) == (row["batch"] == "3")


def test_faster_than_the_ceilings_allow_is_said(engine: EngineConfig) -> None:
    write_json(layout.CEILINGS, {"cpu": {"gflops": {"fp32": 1e-6}, "copy_gib_s": {"1": 1e4}}})
    benchmark(engine)
    for row in rows_of(engine):
        if row["quantity"] != "end_to_end":
            assert "faster than the limit" in row["reasons"]
            assert float(row["limit_fraction"]) > 1


def test_a_batch_out_of_range_stops_before_anything_is_timed(engine: EngineConfig) -> None:
    engine.benchmark.batches = [1, 8]
    with pytest.raises(SegforgeError, match=r"\[8\] are outside"):
        benchmark(engine)
    assert not paths_of(engine).metrics("benchmark").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (lambda c: layout.CEILINGS, "stages/ceilings.py"),
        (lambda c: paths_of(c).detail("evaluate", "outputs.json"), "stages/evaluate.py"),
        (lambda c: paths_of(c).engine, "stages/build.py"),
        (lambda c: paths_of(c).typed, "stages/quantize.py"),
    ],
)
def test_missing_files_name_their_stage(
    engine: EngineConfig, missing: Callable[[EngineConfig], Path], words: str
) -> None:
    missing(engine).unlink()
    with pytest.raises(SegforgeError, match=words):
        benchmark(engine)


def test_ceilings_are_measured_and_noted(data: Path) -> None:
    with pytest.raises(SegforgeError, match=r"stages/probe\.py"):
        measure_ceilings(MachineConfig(ceilings_s=0.02))
    probe(MachineConfig())
    measure_ceilings(MachineConfig(ceilings_s=0.02))
    found = read_json(layout.CEILINGS, made_by="")
    assert set(found["cpu"]["gflops"]) >= {"fp32", "int8"}
    assert set(found["cpu"]["copy_gib_s"]) == {"1", "16", "256"}
    assert all(rate > 0 for table in found["cpu"].values() for rate in table.values())


def test_ceilings_without_openvino_say_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segforge.timing import ceilings

    monkeypatch.setattr(ceilings, "find_spec", lambda name: None)
    probe(MachineConfig())
    measure_ceilings(MachineConfig(ceilings_s=0.01))
    found = read_json(layout.CEILINGS, made_by="")
    assert "bf16" not in found["cpu"]["gflops"]
    assert "openvino is not installed" in found["notes"]["bf16"]


def test_classifiers_are_timed_end_to_end(data: Path) -> None:
    class Logits(SleepingRunner):
        def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
            inputs, _ = super().describe()
            return inputs, [TensorSpec("logits", "float32", (5,), 1, 4)]

        def fetch(self) -> dict[str, Array]:
            return {"logits": np.zeros((self.batch, 5), np.float32)}

    samples = load_index("shapes").split("semantic", "test")
    with Logits() as runner:
        work = measure.latencies(runner, replace(METADATA, task="classification"), samples, 1)["end_to_end"]
        assert work() > 0.007


@pytest.mark.gpu
def test_the_ceilings_of_a_gpu() -> None:
    from segforge.timing.gpu_ceilings import copy_gib_s, gflops

    rates, notes = gflops(0.05)
    assert rates["fp32"] < rates["fp16"]
    assert set(rates) | {name.removeprefix("gpu ") for name in notes} == {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}
    assert copy_gib_s(256, 0.05) > 100
