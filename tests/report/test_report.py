"""figures.csv, the terminal's table and the page, over a small catalogue with every kind of gap."""

import re
from html.parser import HTMLParser

import pytest
from markupsafe import escape
from omegaconf import OmegaConf
from small_world import VARIANT

from segforge import layout
from segforge.config.engine import MachineConfig
from segforge.errors import SegforgeError
from segforge.files import read_csv, read_json, write_csv, write_json
from segforge.layout import EnginePaths
from segforge.machine.identity import cpu
from segforge.report.catalogue import read_catalogue
from segforge.report.figures import COLUMNS, summary
from segforge.timing.figures import COLUMNS as SWEEP
from stages.benchmark import LAYER_COLUMNS
from stages.report import report

TARGETS = (("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"))


def time_it(paths: EnginePaths, scale: float, *, valid: bool = True) -> None:
    """What the benchmark stage writes."""
    engine = read_json(paths.metrics("evaluate"), made_by="")["engine_sha256"]
    timed = {"limit_fraction": 0.25, "limit_ms": 0.1, "n": 50, "valid": str(valid).lower()}
    rows = [
        {
            "batch": b,
            "quantity": q,
            "p50_ms": scale * b,
            "p90_ms": scale * b * 2,
            "throughput_fps": 9,
            **timed,
            "reasons": "" if valid else "warm-up did not settle; <b>other</b> processes",
        }
        for b in (1, 8)
        for q in ("compute", "end_to_end")
    ]
    write_csv(paths.detail("benchmark", "sweep.csv"), SWEEP, rows)
    layers = [{"node": f"conv{i}", "operator": "Conv", "mflop": 1, "mib": 1, "limit_us": i} for i in range(9)]
    write_csv(paths.detail("benchmark", "layers.csv"), LAYER_COLUMNS, layers)
    record = {"command": f"{paths.command('benchmark')} benchmark=quick", "height": 64, "width": 96}
    write_json(paths.detail("benchmark", "record.json"), record)
    write_json(
        paths.metrics("benchmark"),
        {
            "latency_ms": {"p50": scale},
            "throughput_fps": 9,
            "limit_fraction": 0.25,
            "valid": valid,
            "engine_sha256": engine,
        },
    )


@pytest.fixture
def catalogue(world):
    """ORT fp32 and int8 are scored and timed (int8 not valid), a torch baseline is made up, OpenVINO is missing."""
    engines = {
        f"{VARIANT}-cpu-{runtime}-{precision}": {
            "variant": VARIANT,
            "dataset": "shapes",
            "device": "cpu",
            "runtime": runtime,
            "precision": precision,
        }
        for runtime, precision in TARGETS
    }
    OmegaConf.save({"engines": engines}, "params.yaml")
    for precision in ("fp32", "int8"):
        config = world.config(precision)
        world.quantize(config)
        world.finish(config)
    ort = EnginePaths(VARIANT, "cpu-onnxruntime", "fp32")
    torch = EnginePaths(VARIANT, "cpu-torch", "fp32")
    write_json(torch.metrics("evaluate"), read_json(ort.metrics("evaluate"), made_by="") | {"engine_sha256": "t" * 64})
    ledger = read_csv(ort.detail("evaluate", "ledger.csv"), made_by="")
    write_csv(torch.detail("evaluate", "ledger.csv"), list(ledger[0]), ledger)
    write_csv(torch.detail("evaluate", "classes.csv"), ["class", "iou"], [{"class": c} for c in world.passport.classes])
    time_it(torch, 8.0)
    time_it(ort, 2.0)
    time_it(EnginePaths(VARIANT, "cpu-onnxruntime", "int8"), 1.0, valid=False)
    return world


def page() -> str:
    return layout.REPORT.read_text(encoding="utf-8")


def test_figures_hold_the_score_of_the_very_batch(catalogue):
    paths = EnginePaths(VARIANT, "cpu-onnxruntime", "fp32")
    ledger = read_csv(paths.detail("evaluate", "ledger.csv"), made_by="")
    ledger[-1]["score"] = "0.5"
    write_csv(paths.detail("evaluate", "ledger.csv"), list(ledger[0]), ledger)
    report(MachineConfig())
    header = layout.FIGURES.read_text().splitlines()[0]
    assert header == (
        "variant,target,precision,batch,height,width,metric,score,quantity,p50_ms,p90_ms,p99_ms,n,throughput_fps,"
        "limit_ms,limit_fraction,valid,reasons,engine_sha256,onnx_sha256,command"
    )
    assert header.split(",") == list(COLUMNS)
    rows = [row for row in read_csv(layout.FIGURES, made_by="") if row["target"] == "cpu-onnxruntime"]
    assert [(r["precision"], r["batch"], r["quantity"]) for r in rows] == [
        (p, b, q) for p in ("fp32", "int8") for b in "18" for q in ("compute", "end_to_end")
    ]
    assert [r["score"] for r in rows[:4]] == [ledger[-2]["score"]] * 2 + ["0.5"] * 2
    assert rows[0]["engine_sha256"] == read_json(paths.manifest, made_by="")["engine_sha256"]
    assert (rows[0]["height"], rows[0]["width"]) == ("64", "96") and rows[0]["metric"] == "miou"
    words = f"variant={VARIANT} target=cpu-onnxruntime precision=int8"
    assert rows[-1]["command"] == f"python stages/benchmark.py {words} benchmark=quick"
    plot = read_csv(layout.LATENCY_PLOT, made_by="")
    assert {"variant": VARIANT, "target": "cpu-torch", "precision": "fp32", "batch": "8", "p50_ms": "64.0"} in plot
    assert [row["latency_ms"] for row in read_csv(layout.SCORE_PLOT, made_by="")] == ["8.0", "2.0", "1.0"]


def test_the_terminal_shows_one_line_per_engine_and_the_path(catalogue, capsys):
    report(MachineConfig())
    out = capsys.readouterr().out
    lines = {" ".join(line.split()[:2]): line.split() for line in out.splitlines()}
    assert lines["cpu-onnxruntime fp32"][4:] == ["passed", "2.00", "16.00", "4.00x", "4.00x", "25.0%", "yes"]
    assert lines["cpu-onnxruntime int8"][-4:] == ["8.00x", "8.00x", "25.0%", "no"]
    assert lines["cpu-torch fp32"][4:6] == ["not", "passed"]
    assert f"missing: cpu-openvino fp32: not scored: python stages/evaluate.py variant={VARIANT}" in out
    assert "not valid: cpu-onnxruntime int8: b1: warm-up did not settle" in out
    assert out.rstrip().splitlines()[-1] == "metrics/report/report.html"


def test_a_column_of_the_table_is_one_batch(catalogue, capsys):
    """An engine without a median at the largest batch, as where there were too few runs for one."""
    path = EnginePaths(VARIANT, "cpu-torch", "fp32").detail("benchmark", "sweep.csv")
    rows = read_csv(path, made_by="")
    for row in rows:
        if row["batch"] == "8":
            row["p50_ms"] = ""
    write_csv(path, SWEEP, rows)
    report(MachineConfig())
    out = capsys.readouterr().out
    torch = next(line for line in out.splitlines() if line.startswith("cpu-torch"))
    assert torch.split()[4:] == ["not", "passed", "8.00", "-", "1.00x", "-", "25.0%", "yes"]
    assert "p50 ms b1    p50 ms b8    faster b1    faster b8" in out
    engines = read_catalogue()
    assert [summary(engine, engines)["batches"] for engine in engines] == [[1, 8]] * 4


def test_a_verdict_on_another_engine_is_none(catalogue):
    paths = EnginePaths(VARIANT, "cpu-onnxruntime", "fp32")
    catalogue.rewrite(paths.metrics("gate"), engine_sha256="0" * 64)
    engines = read_catalogue()
    assert [summary(engine, engines)["gate"] for engine in engines] == ["not passed", "not passed", "passed", None]


def test_an_engine_timed_before_it_was_scored_again_has_no_row(catalogue, capsys):
    path = EnginePaths(VARIANT, "cpu-onnxruntime", "int8").metrics("benchmark")
    catalogue.rewrite(path, engine_sha256="0" * 64)
    report(MachineConfig())
    assert all(row["precision"] != "int8" for row in read_csv(layout.FIGURES, made_by=""))
    assert "missing: cpu-onnxruntime int8: another engine was timed" in capsys.readouterr().out
    assert "another engine was timed" in page()


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(catalogue):
    report(MachineConfig(title="A <title>"))
    outline = Outline()
    outline.feed(page())
    assert not outline.open
    assert outline.links and all(link.startswith("data:image/jpeg;base64,") for link in outline.links)
    assert not re.search(r"https?://|url\(|@import|<script", page())
    assert "<title>A &lt;title&gt;</title>" in page() and "<b>other</b>" not in page()


def test_the_page_can_be_read_without_seeing_it(catalogue):
    report(MachineConfig())
    outline = Outline()
    outline.feed(page())
    tags = outline.tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags if tag == "svg"] == ["svg"] * (3 + 3)  # three charts, three ledgers
    assert [tag for tag, _ in tags if tag == "img"] == ["img"] * (3 * 4)


def test_the_same_inputs_give_the_same_bytes(catalogue):
    report(MachineConfig())
    first = layout.REPORT.read_bytes()
    report(MachineConfig())
    assert layout.REPORT.read_bytes() == first


def test_the_page_names_the_devices_of_the_catalogue_alone(catalogue):
    write_json(layout.machine("h200"), {"name": "NVIDIA H200", "driver": "580.1"})
    report(MachineConfig())
    assert str(escape(cpu()["name"])) in page() and "NVIDIA H200" not in page()
    for sign, precision in (("●", "fp32"), ("◆", "int8")):
        assert f"<span>{sign} {precision}</span>" in page()


def test_an_engine_that_cannot_be_opened_costs_the_pictures_only(catalogue):
    for precision in ("fp32", "int8"):
        EnginePaths(VARIANT, "cpu-onnxruntime", precision).engine.unlink()
    report(MachineConfig())
    assert "No pictures: models/" in page() and "<img" not in page()


def test_a_failed_gate_is_shown_as_such(catalogue):
    EnginePaths(VARIANT, "cpu-onnxruntime", "int8").metrics("gate").unlink()
    report(MachineConfig())
    assert '<td class="bad">not passed</td>' in page()
    assert re.search(r"Fastest that passed the gate: <b>cpu-onnxruntime fp32</b>", page())


def test_nothing_made_yet_is_a_page_of_what_to_type(project, capsys):
    report(MachineConfig())
    count = len(read_catalogue())
    assert count > 5
    assert capsys.readouterr().out.count("missing: ") == page().count('class="bad">missing') == count
    assert read_csv(layout.FIGURES, made_by="") == []


def test_the_stage_itself_runs(stage):
    done = stage("report")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("metrics/report/report.html")


def test_a_baseline_is_of_the_same_device(catalogue):
    OmegaConf.save(
        {
            "engines": {
                "a": {"variant": VARIANT, "device": "cpu", "runtime": "onnxruntime", "precision": "fp32"},
                "b": {"variant": VARIANT, "device": "h200", "runtime": "torch", "precision": "fp32"},
            }
        },
        "params.yaml",
    )
    engines = read_catalogue()
    assert summary(engines[0], engines)["faster"] == [None, None]


def test_a_project_without_catalogue_is_refused(project):
    (project / "params.yaml").unlink()
    with pytest.raises(SegforgeError, match=r"params\.yaml is missing"):
        read_catalogue()
