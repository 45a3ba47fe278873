import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from segforge.report import plots
from segforge.report.plots import Series
from segforge.terminal import table

MARKS = ("circle", "square", "diamond", "triangle")
values = st.floats(0.001, 1000, allow_nan=False)


@given(values, values)
def test_ticks_cover_the_values_and_are_few(a, b):
    low, high = sorted((a, b))
    for found in (plots.ticks(low, high), plots.log_ticks(low, high)):
        assert found[0] <= low * (1 + 1e-9) and found[-1] >= high * (1 - 1e-9) and found == sorted(set(found))
    assert 2 <= len(plots.ticks(low, high + 0.01)) <= 9


@given(st.lists(st.tuples(values, st.floats(0, 1)), min_size=1, max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points):
    series = [Series("torch", "fp32", [point]) for point in points]
    front = [s.points[0] for s in plots.pareto(series)]
    assert front
    for x, y in points:
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in front) != beaten


@given(st.lists(st.tuples(values, st.floats(0, 1)), min_size=1, max_size=12))
def test_every_chart_is_well_formed_and_names_its_engines(points):
    series = [Series("onnxruntime", p, [point]) for p, point in zip(["fp32", "int8"] * 6, points, strict=False)]
    steps = [(f"s{i}", y) for i, (_, y) in enumerate(points)]
    for chart in (
        plots.score_against_latency(series, "miou", 1),
        plots.latency_against_batch([Series(s.runtime, s.precision, [(1, s.points[0][0])]) for s in series]),
        plots.waterfall("torch", "a <b>", steps, 0.01),
        plots.limit_bars([(s, 0.5, 1.0, 0.5) for s in series]),
    ):
        root = ElementTree.fromstring(str(chart))
        assert root.get("role") == "img" and root.get("aria-label")
        assert "nan" not in str(chart)


def test_a_table_is_aligned():
    text = table(["name", "score"], [["a", "0.5"], ["longer", "-"]])
    assert text == "name      score\n------  -------\na           0.5\nlonger        -"
    text = table(["step", "batch", "loss", "times"], [["1.50", "-", "+0.0100", "2.00x"], ["10", "8", "-0.2000", ""]])
    assert text.splitlines()[2:] == ["  1.50        -  +0.0100    2.00x", "    10        8  -0.2000"], (
        "as they are given"
    )
    assert table(["name"], []).split() == ["name", "------"]


def test_a_precision_is_told_by_its_mark_and_its_dash():
    def chart(mark, dash):
        return str(plots.latency_against_batch([Series("torch", "any", [(1, 2.0), (8, 9.0)], mark, dash)]))

    looks = {(mark, dash): chart(mark, dash) for mark in MARKS for dash in ("", "7 4")}
    assert len(set(looks.values())) == len(looks)
    assert all(f'stroke-dasharray="{dash}"' in drawn for (_, dash), drawn in looks.items())
