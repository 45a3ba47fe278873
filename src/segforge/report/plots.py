"""Small charts as inline SVG: coloured per runtime by the page's style, a shape or dash per precision.

Here is where everything lies; the markup is in charts.html, a macro for each chart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 446, 14, 258  # edges of what the axes frame
FOLDER = FileSystemLoader(Path(__file__).parent)
TEMPLATES = Environment(loader=FOLDER, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
TEMPLATES.globals.update(WIDTH=WIDTH, HEIGHT=HEIGHT, LEFT=LEFT, RIGHT=RIGHT, TOP=TOP, BOTTOM=BOTTOM)

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Series:
    """One engine's line or point: `points` are (x, y) in the axes' units."""

    runtime: str
    precision: str
    points: Sequence[tuple[float, float]]
    mark: str = "circle"
    dash: str = ""

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values that cover `low` to `high`."""
    raw = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last below `low` to the first beyond `high`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    first = max(step for step in steps if step <= low)
    return [step for step in steps if first <= step <= min(s for s in steps if s > high)]


def pareto(series: Sequence[Series]) -> list[Series]:
    """Those that no other beats: none is both at least as fast and at least as good, and better in one."""

    def beaten(x: float, y: float) -> bool:
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in (s.points[0] for s in series))

    return sorted((s for s in series if not beaten(*s.points[0])), key=lambda s: s.points[0])


class Axes:
    """A frame with round ticks; `x` and `y` turn values into the drawing's units. `log_y`: decades are equally high."""

    def __init__(self, xs: list[float], ys: list[float], x_title: str, y_title: str, *, log_y: bool = False) -> None:
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs)), (log_ticks if log_y else ticks)(min(ys), max(ys))
        self.x_labels = {value: f"{value:g}" for value in self.x_ticks}
        self.x_title, self.y_title = x_title, y_title
        self._scale: Callable[[float], float] = math.log10 if log_y else float

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        low, high = self._scale(self.y_ticks[0]), self._scale(self.y_ticks[-1])
        return round(BOTTOM - (self._scale(value) - low) / (high - low) * (BOTTOM - TOP), 1)


def score_against_latency(series: Sequence[Series], metric: str, batch: int) -> Markup:
    """Points (milliseconds, score), the Pareto front drawn through those that no other beats."""
    xs, ys = [s.points[0][0] for s in series], [s.points[0][1] for s in series]
    margin = max(max(ys) - min(ys), 0.002) * 0.15
    axes = Axes([0, *xs], [min(ys) - margin, max(ys) + margin], f"ms per run at batch {batch}", metric)
    placed = [(one, axes.x(x), axes.y(y)) for one, x, y in zip(series, xs, ys, strict=True)]
    best = pareto(series)
    front = [(axes.x(x), axes.y(y)) for x, y in (one.points[0] for one in best)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for _, x, y in placed]
    names = [_beside(x, y, one.name, taken, bold=one in best) for one, x, y in placed]
    label = f"{metric} against latency. On the Pareto front: {', '.join(one.name for one in best)}."
    return _draw("score_against_latency", label, axes=axes, metric=metric, placed=placed, front=front, names=names)


def latency_against_batch(series: Sequence[Series]) -> Markup:
    """Lines (batch, milliseconds), one per engine, both axes logarithmic."""
    batches = sorted({x for s in series for x, _ in s.points})
    ys = [y for s in series for _, y in s.points]
    axes = Axes([-0.2, *map(math.log2, batches)], ys, "batch", "ms per run (p50)", log_y=True)
    axes.x_labels = {math.log2(batch): f"{batch:g}" for batch in batches}
    lines = [(one, [(axes.x(math.log2(x)), axes.y(y)) for x, y in one.points]) for one in series]
    label = "Latency against batch. Median milliseconds of the computation alone."
    return _draw("latency_against_batch", label, axes=axes, lines=lines)


def waterfall(runtime: str, name: str, steps: Sequence[tuple[str, float]], budget: float | None) -> Markup:
    """What each step added to or took from the score, in percentage points below the checkpoint's.

    `steps` are (label, score) from the checkpoint on; `budget` is drawn as the line not to cross.
    """
    points = [(score - steps[0][1]) * 100 for _, score in steps]
    allowed = None if budget is None else budget * 100
    values = [0.0, *points, *([] if allowed is None else [-allowed])]
    margin = max(max(values) - min(values), 0.01) * 0.08
    axes = Axes([0, len(steps)], [min(values) - margin, max(values) + margin], "", "points of score")
    axes.x_labels = {}  # each bar has its step's name instead
    width = (RIGHT - LEFT) / len(steps)
    bars, last = [], 0.0
    for i, ((step, score), value) in enumerate(zip(steps, points, strict=True)):
        engine = step.startswith("b")
        middle, top, bottom = LEFT + (i + 0.5) * width, axes.y(max(last, value)), axes.y(min(last, value))
        bars.append((step, score, value, engine, middle, top, bottom))
        # The engine's batches all start from the typed graph: they are alternatives, not a sequence.
        last = last if engine else value
    label = f"Ledger of {name}. " + "; ".join(f"{step} {score:.4f}" for step, score in steps)
    return _draw("waterfall", label, axes=axes, runtime=runtime, budget=allowed, width=width, bars=bars)


def limit_bars(rows: Sequence[tuple[Series, float, float, float]]) -> Markup:
    """Per engine the share of this machine's limit that it reaches; rows are (engine, share, ms, limit in ms)."""
    label = "Distance to the limit. " + "; ".join(f"{one.name} {share:.0%}" for one, share, _, _ in rows)
    return _draw("limit_bars", label, rows=rows)


def _draw(chart: str, label: str, **parts: Any) -> Markup:
    drawn: Markup = getattr(TEMPLATES.get_template("charts.html").module, chart)(label, **parts)
    return drawn


def _beside(x: float, y: float, name: str, taken: list[Box], *, bold: bool) -> tuple[float, float, str, str, str]:
    """Where the name of a point goes: the first place beside it that no earlier label takes."""
    width = len(name) * (7.6 if bold else 6.8)
    places = [(dx, dy) for dy in (4, -12, 20, -26, 34, -40, 48) for dx in (10.0, -10.0 - width)]
    for dx, dy in places:
        box = (x + dx, y + dy - 11, x + dx + width, y + dy + 3)
        inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP - 8 and box[3] <= BOTTOM
        if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            break
    taken.append(box)
    anchor, start = ("start", box[0]) if box[0] > x else ("end", box[2])
    return start, box[3] - 3, name, anchor, "halo front-label" if bold else "halo"
