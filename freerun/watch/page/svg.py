"""Charts as inline SVG: lines, stacked columns, bars. Colours come from the page's variables, so both colour schemes work;
values show on hover through `<title>`, without a script."""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from freerun.watch.numbers import quantity
from freerun.watch.page.html import Child, Html, el

WIDTH, HEIGHT = 360.0, 178.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 10.0, 8.0, 22.0
MAX_POINTS = 240
"""Points of a line; longer series are averaged, because a screen has no more pixels and a page should open at once."""


def colour(index: int) -> str:
    return f"var(--c{index % 8})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line. `bounds` are intervals drawn as whiskers at marked points; `faint` is background for a smoothed line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False
    bounds: Sequence[tuple[float, float]] = field(default_factory=tuple)

    @property
    def last(self) -> float:
        return self.y[-1] if self.y else math.nan


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels: `low` to `start`, `high` to `end`, by logarithm if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, count)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = max(1, len(decades) // count)
        return [10.0**d for d in decades[::every] if self.low <= 10.0**d <= self.high]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers in [low, high], about `count` of them: multiples of 1, 2 or 5 times a power of ten."""
    # Closer than that, multiples of a step cannot be told from one another.
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def value_axis(values: Sequence[float], *, fixed: tuple[float, float] | None, log: bool) -> Axis:
    """A vertical axis with some air around `values`, or the `fixed` range. Logarithmic only where the values allow it."""
    finite = [v for v in values if math.isfinite(v)]
    start, end = HEIGHT - BOTTOM, TOP
    if fixed is not None:
        return Axis(*fixed, start, end)
    if not finite:
        return Axis(0.0, 1.0, start, end)
    low, high = min(finite), max(finite)
    if log and low > 0 and high / low > 20:
        return Axis(low / 1.3, high * 1.3, start, end, log=True)
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(0.0 if 0 <= low < 0.35 * high else low - air, high + air, start, end)


def drawable(value: float) -> float:
    """`value`, or not-a-number where a picture cannot show it: not finite, or so large that a difference would overflow. What
    is smaller than any unit is 0."""
    if not abs(value) < 1e300:
        return math.nan
    return value if abs(value) > 1e-300 else 0.0


def thinned(series: Series) -> Series:
    """`series` averaged to at most `MAX_POINTS` points; runs that contain a non-finite value stay non-finite."""
    size = len(series.x)
    if size <= MAX_POINTS:
        return series
    edges = [i * size // MAX_POINTS for i in range(MAX_POINTS + 1)]
    cuts = list(itertools.pairwise(edges))
    return replace(series, x=[series.x[b - 1] for _, b in cuts], y=[sum(series.y[a:b]) / (b - a) for a, b in cuts], bounds=())


def smoothed(series: Series) -> list[Series]:
    """A noisy line as a faint line with its running mean over a tenth of the run on top; itself if it is short."""
    if len(series.x) < 20:
        return [series]
    series = thinned(series)
    reach = max(1, len(series.x) // 20)
    means = []
    for i in range(len(series.y)):
        near = [v for v in series.y[max(0, i - reach) : i + reach + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return [replace(series, name="each step", faint=True), replace(series, y=means)]


def line_chart(
    lines: Sequence[Series],
    *,
    show: Callable[[float], str] = quantity,
    fixed: tuple[float, float] | None = None,
    log: bool = False,
) -> Html:
    """Lines over the trainer's steps. A value that is not finite breaks its line and is marked at the top edge."""
    lines = [replace(line, y=[drawable(v) for v in line.y]) for line in map(thinned, lines)]
    xs = sorted({x for line in lines for x in line.x})
    ends = [v for line in lines for pair in line.bounds for v in pair]
    y_axis = value_axis([*ends, *(v for line in lines for v in line.y)], fixed=fixed, log=log)
    low, high = (xs[0], xs[-1]) if xs else (0.0, 1.0)
    x_axis = Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)
    drawn = [_frame(x_axis, y_axis, show), *(_line(line, x_axis, y_axis) for line in lines)]
    return _svg(*drawn, *_hits(lines, xs, x_axis, show), height=HEIGHT)


def _svg(*children: Child, height: float, width: float = WIDTH) -> Html:
    return el("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img")


def _frame(x_axis: Axis, y_axis: Axis, show: Callable[[float], str]) -> list[Html]:
    """Grid lines with their values, and step numbers below."""
    parts = []
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(el("line", class_="gridline", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(el("text", show(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
    whole = [t for t in x_axis.ticks(5) if t == int(t)]
    parts.extend(el("text", f"{int(t)}", x=min(x_axis(t), WIDTH - 14), y=HEIGHT - 6, text_anchor="middle") for t in whole)
    return parts


def _line(line: Series, x_axis: Axis, y_axis: Axis) -> list[Html]:
    path, pen, parts = [], "M", []
    for x, y in zip(line.x, line.y, strict=True):
        if not math.isfinite(y) or (y_axis.log and y <= 0):
            parts.append(el("text", "×", x=x_axis(x), y=TOP + 8, text_anchor="middle", style="fill: var(--bad)"))
            pen = "M"
            continue
        path.append(f"{pen}{x_axis(x):.1f} {min(max(y_axis(y), 0.0), HEIGHT):.1f}")
        pen = "L"
    parts.append(
        el(
            "path",
            d="".join(path),
            fill="none",
            stroke=colour(line.colour),
            stroke_width=1.2 if line.faint else 2.0,
            stroke_linejoin="round",
            stroke_linecap="round",
            opacity=0.35 if line.faint else None,
        )
    )
    for (low, high), x, y in zip(line.bounds, line.x, line.y, strict=False):
        parts.append(
            el(
                "line",
                x1=x_axis(x),
                x2=x_axis(x),
                y1=y_axis(low),
                y2=y_axis(high),
                stroke=colour(line.colour),
                opacity=0.45,
                stroke_width=2.0,
            )
        )
        parts.append(el("circle", cx=x_axis(x), cy=y_axis(y), r=3.4, fill=colour(line.colour)))
    if path and not line.faint and not line.bounds:
        end_x, end_y = path[-1][1:].split(" ")
        parts.append(el("circle", cx=end_x, cy=end_y, r=3.0, fill=colour(line.colour)))
    return parts


def _hits(lines: Sequence[Series], xs: Sequence[float], x_axis: Axis, show: Callable[[float], str]) -> list[Html]:
    """Invisible columns that say the values at a step when the pointer rests on them."""
    values = {(line.name, x): y for line in lines for x, y in zip(line.x, line.y, strict=True)}
    parts = []
    for i, x in enumerate(xs):
        left = x_axis((xs[i - 1] + x) / 2) if i else LEFT
        right = x_axis((x + xs[i + 1]) / 2) if i + 1 < len(xs) else WIDTH - RIGHT
        said = [f"{line.name}: {show(values[line.name, x])}" for line in lines if (line.name, x) in values]
        title = el("title", "\n".join([f"step {x:g}", *said]))
        parts.append(el("rect", title, class_="hit", x=left, width=max(right - left, 0.5), y=TOP, height=HEIGHT - TOP - BOTTOM))
    return parts


def share_columns(xs: Sequence[float], columns: Sequence[Mapping[int, float]], colours: Mapping[int, int]) -> Html:
    """Stacked columns of shares over steps; `columns[i]` maps a key to its share at `xs[i]`, drawn from the smallest key up."""
    if len(xs) > MAX_POINTS:
        every = math.ceil(len(xs) / MAX_POINTS)
        xs, columns = xs[::every], columns[::every]
    x_axis, y_axis = Axis(0, max(len(xs), 1), LEFT, WIDTH - RIGHT), Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = [el("text", f"{v:.0%}", x=LEFT - 6, y=y_axis(v) + 4, text_anchor="end") for v in (0.0, 0.5, 1.0)]
    wide = (WIDTH - RIGHT - LEFT) / max(len(xs), 1)
    for i, column in enumerate(columns):
        below = 0.0
        said = "\n".join([f"step {xs[i]:g}", *(f"lag {k}: {s:.1%}" for k, s in sorted(column.items()))])
        stack = []
        for key, share in sorted(column.items()):
            stack.append(
                el(
                    "rect",
                    x=x_axis(i),
                    width=wide * (0.86 if wide > 4 else 1.0),
                    y=y_axis(below + share),
                    height=y_axis(below) - y_axis(below + share),
                    fill=colour(colours[key]),
                )
            )
            below += share
        parts.append(el("g", el("title", said), stack))
    for step in ticks(xs[0], xs[-1], 5) if xs else ():
        if step == int(step):
            x = x_axis(bisect.bisect_left(xs, step) + 0.5)
            parts.append(el("text", f"{step:g}", x=min(x, WIDTH - 14), y=HEIGHT - 6, text_anchor="middle"))
    return _svg(parts, height=HEIGHT)


def bars(rows: Sequence[tuple[str, float, str, int]]) -> Html:
    """Horizontal bars: (label, share of the full width, what to write behind it, colour)."""
    step, left, right = 26.0, 52.0, 138.0
    parts = []
    for i, (label, share, said, index) in enumerate(rows):
        y = 4 + i * step
        long = max(share * (WIDTH - left - right), 1.0)
        parts += [
            el("text", label, x=left - 8, y=y + 13, text_anchor="end"),
            el("rect", el("title", f"{label}: {said}"), x=left, y=y, width=long, height=18.0, rx=3, fill=colour(index)),
            el("text", said, x=left + long + 8, y=y + 13),
        ]
    return _svg(parts, height=8 + step * max(len(rows), 1))
