"""Small charts as inline SVG: coloured per runtime by the page's style, a shape or dash per precision."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 42
SHAPES = {"fp32": "circle", "bf16": "square", "fp16": "square", "int8": "diamond", "fp8": "triangle"}
DASHES = {"fp32": "", "tf32": "", "bf16": "7 4", "fp16": "7 4", "int8": "2 4", "fp8": "2 4"}


@dataclass(frozen=True)
class Series:
    """One engine's line or point: `points` are (x, y) in the axes' units."""

    runtime: str
    precision: str
    points: Sequence[tuple[float, float]]

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

    def __init__(
        self, xs: Iterable[float], ys: Iterable[float], x_title: str, y_title: str, *, log_y: bool = False
    ) -> None:
        xs, ys = list(xs), list(ys)
        self.x_ticks = ticks(min(xs), max(xs))
        self.y_ticks = (log_ticks if log_y else ticks)(min(ys), max(ys))
        self.x_title, self.y_title = x_title, y_title
        self._scale = math.log10 if log_y else float

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self._scale(self.y_ticks[0]), self._scale(self.y_ticks[-1])
        return round(HEIGHT - BOTTOM - (self._scale(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(self, x_labels: dict[float, str] | None = None) -> Markup:
        lines: list[Markup] = []
        for value in self.y_ticks:
            y = self.y(value)
            lines.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
            lines.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
        for value, label in (x_labels or {t: f"{t:g}" for t in self.x_ticks}).items():
            lines.append(_text(self.x(value), HEIGHT - BOTTOM + 16, label, "middle"))
        lines.append(_text((WIDTH + LEFT - RIGHT) / 2, HEIGHT - 6, self.x_title, "middle"))
        middle = (HEIGHT - BOTTOM + TOP) / 2
        lines.append(
            Markup('<text transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
                middle, self.y_title
            )
        )
        return Markup("").join(lines)


def score_against_latency(series: Sequence[Series], metric: str, batch: int) -> Markup:
    """Points (milliseconds, score), the Pareto front drawn through those that no other beats."""
    xs, ys = [s.points[0][0] for s in series], [s.points[0][1] for s in series]
    span = max(max(ys) - min(ys), 0.002)
    axes = Axes([0, *xs], [min(ys) - span * 0.15, max(ys) + span * 0.15], f"ms per run at batch {batch}", metric)
    front = pareto(series)
    drawn = [axes.draw()]
    steps = "".join(
        f"{'M' if i == 0 else 'H'}{axes.x(s.points[0][0])}{' ' if i == 0 else 'V'}{axes.y(s.points[0][1])}"
        for i, s in enumerate(front)
    )
    drawn.append(Markup('<path class="front" d="{}"/>').format(steps + f"H{WIDTH - RIGHT}"))
    marks = [(axes.x(s.points[0][0]), axes.y(s.points[0][1])) for s in series]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    drawn += [_label(one, *place, taken, bold=one in front) for one, place in zip(series, marks, strict=True)]
    for one, (x, y) in zip(series, marks, strict=True):
        drawn.append(_mark(one, x, y, f"{one.name}: {one.points[0][0]:.2f} ms, {metric} {one.points[0][1]:.4f}"))
    names = ", ".join(s.name for s in front)
    return _svg(f"{metric} against latency", f"On the Pareto front: {names}.", drawn)


def latency_against_batch(series: Sequence[Series]) -> Markup:
    """Lines (batch, milliseconds), one per engine, both axes logarithmic."""
    batches = sorted({x for s in series for x, _ in s.points})
    ys = [y for s in series for _, y in s.points]
    axes = Axes([-0.2, *map(math.log2, batches)], ys, "batch", "ms per run (p50)", log_y=True)
    drawn = [axes.draw({math.log2(b): f"{b:g}" for b in batches})]
    for one in series:
        places = [(axes.x(math.log2(x)), axes.y(y)) for x, y in one.points]
        drawn.append(
            Markup('<path class="line rt-{}" stroke-dasharray="{}" d="{}"/>').format(
                one.runtime, DASHES.get(one.precision, ""), "M" + "L".join(f"{x} {y}" for x, y in places)
            )
        )
        for (x, y), (batch, ms) in zip(places, one.points, strict=True):
            drawn.append(_mark(one, x, y, f"{one.name}, batch {batch:g}: {ms:.2f} ms"))
    return _svg("Latency against batch", "Median milliseconds of the computation alone.", drawn)


def waterfall(runtime: str, name: str, steps: Sequence[tuple[str, float]], budget: float | None) -> Markup:
    """What each step added to or took from the score, in percentage points below the checkpoint's.

    `steps` are (label, score) from the checkpoint on; `budget` is drawn as the line not to cross.
    """
    start = steps[0][1]
    points = [(label, (score - start) * 100) for label, score in steps]
    floor = [] if budget is None else [-budget * 100]
    values = [0.0, *(value for _, value in points), *floor]
    margin = max(max(values) - min(values), 0.01) * 0.08
    axes = Axes([0, len(points)], [min(values) - margin, max(values) + margin], "", "points of score")
    width = (WIDTH - LEFT - RIGHT) / len(points)
    drawn = [axes.draw({0.0: ""})]
    if budget is not None:
        y = axes.y(-budget * 100)
        drawn.append(Markup('<path class="budget" d="M{} {}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        drawn.append(_text(WIDTH - RIGHT, y - 5, f"budget −{budget * 100:g}", "end", "halo budget-label"))
    last = 0.0
    for i, (label, value) in enumerate(points):
        x = LEFT + i * width
        engine = label.startswith("b")
        top, bottom = axes.y(max(last, value)), axes.y(min(last, value))
        drawn.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(
                f"rt-{runtime}" if engine else "step",
                *(x + width * 0.15, top - 1, width * 0.7, bottom - top + 2),
                f"{label}: score {steps[i][1]:.4f}, {value:+.3f} points against the checkpoint",
            )
        )
        drawn.append(_text(x + width / 2, HEIGHT - BOTTOM + (32 if i % 2 and not engine else 16), label, "middle"))
        drawn.append(_text(x + width / 2, top - 6, f"{value:+.2f}" if i else f"{start:.4f}", "middle", "halo value"))
        # The engine's batches all start from the typed graph: they are alternatives, not a sequence.
        last = last if engine else value
    title = f"Ledger of {name}"
    return _svg(title, "; ".join(f"{label} {score:.4f}" for label, score in steps), drawn)


def limit_bars(rows: Sequence[tuple[Series, float, float, float]]) -> Markup:
    """Per engine the share of this machine's limit that it reaches; rows are (engine, share, ms, limit in ms)."""
    high = 34
    drawn: list[Markup] = []
    left, wide = 128, WIDTH - 128 - 118
    for i, (one, share, ms, limit) in enumerate(rows):
        y = 6 + i * high
        length = max(1.0, min(share, 1.0) * wide)
        drawn.append(_text(left - 8, y + 16, one.name, "end"))
        drawn.append(Markup('<rect class="room" x="{}" y="{}" width="{}" height="20"/>').format(left, y + 2, wide))
        drawn.append(
            Markup('<rect class="bar rt-{}" x="{}" y="{}" width="{:.1f}" height="20"><title>{}</title></rect>').format(
                *(one.runtime, left, y + 2, length),
                f"{one.name}: {ms:.2f} ms, and the limit is {limit:.3g} ms",
            )
        )
        drawn.append(_text(left + wide + 8, y + 16, f"{share:.0%} · {limit:.3g} ms", "start"))
    description = "; ".join(f"{s.name} {share:.0%}" for s, share, _, _ in rows)
    return _svg("Distance to the limit", description, drawn, 6 + len(rows) * high)


def _svg(title: str, description: str, parts: Iterable[Markup], height: int = HEIGHT) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, f"{title}. {description}", Markup("").join(parts)
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, text)


def _mark(one: Series, x: float, y: float, title: str) -> Markup:
    shape = {
        "square": f"M{x - 5} {y - 5}h10v10h-10Z",
        "diamond": f"M{x} {y - 7}l7 7l-7 7l-7 -7Z",
        "triangle": f"M{x} {y - 7}l7 12h-14Z",
    }.get(SHAPES.get(one.precision, ""), f"M{x - 5.5} {y}a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z")
    return Markup('<path class="mark rt-{}" d="{}"><title>{}</title></path>').format(one.runtime, shape, escape(title))


def _label(one: Series, x: float, y: float, taken: list[tuple[float, float, float, float]], *, bold: bool) -> Markup:
    """The engine's name beside its point, at the first place that no earlier label takes."""
    width = len(one.name) * (7.6 if bold else 6.8)
    places = [(dx, dy) for dy in (4, -12, 20, -26, 34, -40, 48) for dx in (10.0, -10.0 - width)]
    for dx, dy in places:
        box = (x + dx, y + dy - 11, x + dx + width, y + dy + 3)
        inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
        if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            break
    taken.append(box)
    anchor, start = ("start", box[0]) if box[0] > x else ("end", box[2])
    return _text(start, box[3] - 3, one.name, anchor, "halo front-label" if bold else "halo")
