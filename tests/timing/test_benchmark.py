"""The whole stage on a tiny engine."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tiny_engine import PASSPORT, engine_config, write_dataset, write_typed

from segforge import files, layout
from segforge.config.engine import EngineConfig, MachineConfig
from segforge.datasets.core.index import load_index
from segforge.engines.engine import Engine, build_engine
from segforge.errors import SegforgeError
from segforge.evaluation import outputs_digest
from segforge.files import read_csv, read_json, write_json
from segforge.process import usable_cores
from segforge.runtimes.core.base import Runner
from segforge.runtimes.core.onnx import OnnxRunner
from segforge.timing.figures import COLUMNS
from stages.benchmark import LAYER_COLUMNS, benchmark
from stages.probe import probe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(project: Path) -> Path:
    write_dataset()
    return project


@pytest.mark.parametrize("batches", [[0], [1, 5], [8]])
def test_a_batch_outside_the_range_is_an_error(batches: list[int]) -> None:
    with pytest.raises(SegforgeError, match="from 1 to 4"):
        PASSPORT.require_batches(batches)


@pytest.fixture
def engine(data: Path) -> EngineConfig:
    """A built tiny engine with ceilings and the hashes of its scored outputs."""
    config = engine_config(ROOT, "target=cpu-onnxruntime")
    write_typed(config)
    probe(MachineConfig())
    write_json(layout.ceilings("cpu"), {"gflops": {"fp32": 1e5, "int8": 1e5}, "copy_gib_s": {"1": 1e4}})
    build_engine(config)
    write_scored(config)
    return config


def write_scored(config: EngineConfig, **changes: str) -> None:
    samples = load_index("shapes").split("semantic", "test")
    with Engine.of(config).open() as runner:
        hashes = {str(b): outputs_digest(runner, PASSPORT, samples, b, 4) for b in config.benchmark.batches}
    write_json(config.paths.detail("evaluate", "outputs.json"), {"images": 4, "sha256": {**hashes, **changes}})


def rows_of(config: EngineConfig) -> list[dict[str, str]]:
    return read_csv(config.paths.detail("benchmark", "sweep.csv"), made_by="")


def test_the_whole_stage(engine: EngineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(engine)
    paths = engine.paths
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
    write_json(layout.ceilings("cpu"), {"gflops": {"fp32": 1e-6}, "copy_gib_s": {"1": 1e4}})
    benchmark(engine)
    for row in rows_of(engine):
        if row["quantity"] != "end_to_end":
            assert "faster than the limit" in row["reasons"]
            assert float(row["limit_fraction"]) > 1


def test_a_batch_out_of_range_stops_before_anything_is_timed(engine: EngineConfig) -> None:
    engine.benchmark.batches = [1, 8]
    with pytest.raises(SegforgeError, match=r"\[8\] are outside"):
        benchmark(engine)
    assert not engine.paths.metrics("benchmark").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (lambda c: layout.ceilings("cpu"), "stages/ceilings.py device=cpu"),
        (lambda c: c.paths.detail("evaluate", "outputs.json"), "stages/evaluate.py"),
        (lambda c: c.paths.engine, "stages/build.py"),
        (lambda c: c.paths.typed, "stages/quantize.py"),
    ],
)
def test_missing_files_name_their_stage(
    engine: EngineConfig, missing: Callable[[EngineConfig], Path], words: str
) -> None:
    missing(engine).unlink()
    with pytest.raises(SegforgeError, match=words):
        benchmark(engine)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a runner of ONNX Runtime was opened and closed."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> Callable[[OnnxRunner], None]:
        work: Callable[[OnnxRunner], None] = getattr(OnnxRunner, name)

        def count(runner: OnnxRunner) -> None:
            counted[name] += 1
            work(runner)

        return count

    for name in ("open", "close"):
        monkeypatch.setattr(OnnxRunner, name, counting(name))
    return counted


@pytest.mark.parametrize("streams", [None, 1, 3], ids=["default", "1", "3"])
def test_what_is_timed_is_read_hashed_and_parsed_once(
    engine: EngineConfig, opens: Counter[str], monkeypatch: pytest.MonkeyPatch, streams: int | None
) -> None:
    """However many batches and streams there are; runners are opened once for the latencies, and once a stream."""
    seen: Counter[tuple[str, str]] = Counter()
    hashed, parsed = files.sha256_file, onnx.load

    def hash_file(path: Path) -> str:
        seen["hashed", path.name] += 1
        return hashed(path)

    def load(path: str) -> onnx.ModelProto:
        seen["parsed", Path(path).name] += 1
        return parsed(path)

    for module in [module for name, module in sys.modules.items() if name.startswith(("segforge", "stages"))]:
        if getattr(module, "sha256_file", None) is hashed:
            monkeypatch.setattr(module, "sha256_file", hash_file)
    monkeypatch.setattr(onnx, "load", load)
    engine.benchmark.streams = streams = streams or engine.benchmark.streams
    engine.benchmark.batches = [1, 2, 4]
    benchmark(engine)
    assert seen == {("hashed", "engine.bin"): 1, ("hashed", "typed.onnx"): 1, ("parsed", "typed.onnx"): 1}
    assert opens == {"open": 1 + streams, "close": 1 + streams}


def test_a_stream_that_cannot_be_opened_leaves_none_open(
    engine: EngineConfig, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = OnnxRunner.open

    def third(runner: OnnxRunner) -> None:
        counting(runner)
        if opens["open"] == 3:
            raise SegforgeError("no second stream")

    monkeypatch.setattr(OnnxRunner, "open", third)
    engine.benchmark.streams = 2
    with pytest.raises(SegforgeError, match="no second stream"):
        benchmark(engine)
    assert opens == {"open": 3, "close": 2}
    assert not engine.paths.metrics("benchmark").exists()


def test_streams_share_the_cores(engine: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int | None] = []
    opening = Engine.open

    def open_engine(self: Engine, threads_each: int | None = None) -> Runner:
        threads.append(threads_each)
        return opening(self, threads_each)

    monkeypatch.setattr(Engine, "open", open_engine)
    engine.benchmark.streams = 2
    benchmark(engine)
    share = max(1, usable_cores() // 2)
    assert threads == [None, share, share]
    figures = read_json(engine.paths.detail("benchmark", "record.json"), made_by="")["figures"]
    found = [(f["streams"], f["threads_per_stream"]) for f in figures if f["quantity"] == "throughput"]
    assert found == [(2, share)] * 2
