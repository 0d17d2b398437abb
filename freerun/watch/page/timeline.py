"""Who did what, when, as a picture: one lane per executor, in full detail for a few steps and in slices for a whole run."""

import itertools
import math
from collections.abc import Mapping, Sequence

from freerun.metrics import IDLE, Event
from freerun.watch.numbers import duration
from freerun.watch.page.accounts import Interval, by_executor, union
from freerun.watch.page.html import Html, el
from freerun.watch.page.svg import Axis, colour, ticks

WIDTH, LEFT, RIGHT, LANE, GAP, FOOT = 1120.0, 104.0, 8.0, 34.0, 10.0, 24.0
ROWS = 3
"""Overlapping spans of one lane are drawn in at most this many rows."""
USUAL = ("generate", "train", "score", "update", "publish", "checkpoint", "warm-start")
MIN_PIXELS = 0.7
"""Neighbouring spans of one kind that are closer than this are drawn as one."""


def kinds(events: Sequence[Event]) -> dict[str, int]:
    """A colour for each kind of work: the usual ones have the same in every report, the others follow."""
    found = {e.what for e in events if e.what != IDLE and e.end > e.start}
    return {what: i for i, what in enumerate((*USUAL, *sorted(found - set(USUAL)))) if what in found}


def windows(step_ends: Sequence[float], seconds: float, *, steps: int = 3) -> list[tuple[str, float, float]]:
    """What to show in detail: the whole run if it is short, else about `steps` steps near its start and at its end."""
    if len(step_ends) < 2 * steps + 4:
        return [("The whole run", 0.0, seconds)]
    usual = sorted(b - a for a, b in itertools.pairwise(step_ends))[(len(step_ends) - 1) // 2]
    wide = max(steps * usual, seconds / 1e4)
    early, late = step_ends[0], step_ends[-1] - wide
    return [("Early in the run", early, early + wide), ("At the end of the run", late, step_ends[-1])]


def detail(
    events: Sequence[Event], colours: Mapping[str, int], start: float, end: float, marks: Sequence[tuple[float, str]]
) -> Html:
    """Every span between `start` and `end`, one lane per executor; `marks` are dashed lines with a label."""
    lanes = by_executor(events)
    x_axis = Axis(start, max(end, start + 1e-6), LEFT, WIDTH - RIGHT)
    height = FOOT + 14 + len(lanes) * (LANE + GAP)
    parts = [_label(name, i) for i, name in enumerate(lanes)]
    for i, spans in enumerate(lanes.values()):
        top = _top(i)
        parts.append(el("rect", class_="lane", x=LEFT, y=top, width=WIDTH - RIGHT - LEFT, height=LANE, rx=4))
        shown = [e for e in spans if e.end > start and e.start < end]
        idle = [e for e in shown if e.what == IDLE]
        parts.extend(_span(e, x_axis, top, LANE, None) for e in _joined(idle, x_axis))
        for row, rows, e in _stacked([e for e in shown if e.what != IDLE], x_axis):
            parts.append(_span(e, x_axis, top + row * LANE / rows, LANE / rows, colours[e.what]))
    for at, label in marks:
        if start <= at <= end:
            x = x_axis(at)
            parts.append(el("line", class_="stepline", x1=x, x2=x, y1=12.0, y2=height - FOOT, stroke_dasharray="2 3"))
            parts.append(el("text", label, x=min(x, WIDTH - 18), y=9.0, text_anchor="middle"))
    parts.extend(_time_axis(x_axis, height))
    return el("div", el("svg", parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img"), class_="wide")


def overview(events: Sequence[Event], colours: Mapping[str, int], seconds: float, *, bins: int = 180) -> Html:
    """The whole run: per lane and slice of time, the share of each kind of work; what stays empty is idle time."""
    lanes = by_executor(events)
    x_axis = Axis(0.0, max(seconds, 1e-6), LEFT, WIDTH - RIGHT)
    height = FOOT + 14 + len(lanes) * (LANE + GAP)
    wide = seconds / bins
    parts = [_label(name, i) for i, name in enumerate(lanes)]
    for i, spans in enumerate(lanes.values()):
        top = _top(i)
        parts.append(el("rect", class_="lane", x=LEFT, y=top, width=WIDTH - RIGHT - LEFT, height=LANE, rx=4))
        for b, shares in enumerate(_slices(spans, wide, bins)):
            scale = 1 / max(1.0, sum(shares.values()))
            below = top + LANE
            when = f"{duration(b * wide)} – {duration((b + 1) * wide)}"
            said = "\n".join([when, *(f"{what}: {share:.0%}" for what, share in shares.items())])
            stack = []
            for what, share in sorted(shares.items(), key=lambda pair: colours[pair[0]]):
                tall = share * scale * LANE
                below -= tall
                stack.append(
                    el(
                        "rect",
                        x=x_axis(b * wide),
                        width=x_axis(wide) - LEFT + 0.15,
                        y=below,
                        height=tall,
                        fill=colour(colours[what]),
                    )
                )
            parts.append(el("g", el("title", said), stack))
    parts.extend(_time_axis(x_axis, height))
    return el("div", el("svg", parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img"), class_="wide")


def _slices(spans: Sequence[Event], wide: float, bins: int) -> list[dict[str, float]]:
    """Per slice of time, the share of it that each kind of work took."""
    slices: list[dict[str, float]] = [{} for _ in range(bins)]
    by_what: dict[str, list[Interval]] = {}
    for e in spans:
        if e.what != IDLE:
            by_what.setdefault(e.what, []).append((e.start, e.end))
    for what, intervals in by_what.items():
        for start, end in union(intervals):
            for b in range(max(0, int(start / wide)), min(bins, math.ceil(end / wide))):
                inside = min(end, (b + 1) * wide) - max(start, b * wide)
                slices[b][what] = min(1.0, slices[b].get(what, 0.0) + max(inside, 0.0) / wide)
    return slices


def _top(lane: int) -> float:
    return 14 + lane * (LANE + GAP)


def _label(name: str, lane: int) -> Html:
    short = name if len(name) <= 14 else name[:13] + "…"
    return el("text", el("title", name), short, class_="name", x=LEFT - 10, y=_top(lane) + LANE / 2 + 4, text_anchor="end")


def _stacked(spans: Sequence[Event], x_axis: Axis) -> list[tuple[int, int, Event]]:
    """(row, number of rows, span): spans that overlap get rows of their own, as far as there are rows."""
    rows: list[list[Event]] = []
    for e in spans:
        free = next((row for row in rows if row[-1].end <= e.start + 1e-9), None)
        if free is None and len(rows) < ROWS:
            rows.append(free := [])
        (free if free is not None else min(rows, key=lambda row: row[-1].end)).append(e)
    return [(i, len(rows), e) for i, row in enumerate(rows) for e in _joined(row, x_axis)]


def _joined(spans: Sequence[Event], x_axis: Axis) -> list[Event]:
    """Spans of one kind that the eye cannot tell apart, as one: many short calls would make a page of megabytes."""
    joined: list[Event] = []
    for e in spans:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.what == e.what
            and x_axis(e.end) - x_axis(last.start) < MIN_PIXELS * 6
            and x_axis(e.start) - x_axis(last.end) < MIN_PIXELS
        ):
            joined[-1] = Event(executor=e.executor, what=e.what, start=last.start, end=max(last.end, e.end), detail=last.detail)
        else:
            joined.append(e)
    return joined


def _span(e: Event, x_axis: Axis, top: float, height: float, index: int | None) -> Html:
    left, right = max(x_axis(e.start), LEFT), min(x_axis(e.end), WIDTH - RIGHT)
    said = e.detail.get("why" if index is None else "doing", "")
    title = f"{said or e.what}\n{duration(e.end - e.start)}, from {duration(e.start)}"
    look = {"class_": "idle", "fill": "transparent"} if index is None else {"class_": "span", "fill": colour(index)}
    air = 0.6 if right - left > 3 else 0.0
    return el(
        "rect",
        el("title", title),
        x=left,
        y=top,
        width=max(right - left - air, 0.4),
        height=height - 1 if height < LANE else height,
        rx=1.5,
        **look,
    )


def _time_axis(x_axis: Axis, height: float) -> list[Html]:
    return [
        el("text", clock(t, x_axis.high), x=min(x_axis(t), WIDTH - 22), y=height - 8, text_anchor="middle")
        for t in ticks(x_axis.low, x_axis.high, 8)
    ]


def clock(seconds: float, largest: float) -> str:
    """`2.5s` where all times are below a minute, else `9:20` or `1:05:03`."""
    if largest < 60:
        return f"{seconds:g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if largest < 3600 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
