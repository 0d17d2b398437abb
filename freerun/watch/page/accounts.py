"""Where the time of each executor went.

An executor is busy while any of its spans that is not `IDLE` is open, and idle otherwise. The reasons of idle time come from
`IDLE` spans; idle time that no such span covers has no known reason.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from freerun.metrics import IDLE, Event

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Account:
    """Where the time of one executor went, as shares of `seconds`: `busy` by kind of work (these may overlap), `idle` by reason
    ("" where it is not known)."""

    executor: str
    seconds: float
    busy_share: float
    busy: Mapping[str, float]
    idle: Mapping[str, float]


def union(spans: Iterable[Interval]) -> list[Interval]:
    """The same moments as sorted intervals that neither touch nor overlap."""
    merged: list[Interval] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def without(spans: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """What of `spans` lies outside `holes`; both as `union` gives them."""
    left: list[Interval] = []
    first = 0
    for start, end in spans:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        at, i = start, first
        while i < len(holes) and holes[i][0] < end:
            if holes[i][0] > at:
                left.append((at, holes[i][0]))
            at = max(at, holes[i][1])
            i += 1
        if at < end:
            left.append((at, end))
    return left


def length(spans: Iterable[Interval]) -> float:
    return sum(end - start for start, end in spans)


def reason(why: object) -> str:
    """A reason without its numbers, so that waits for step 7 and step 8 count together."""
    return re.sub(r"\d+", "N", str(why))


def by_executor(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Spans (no instants) of each executor in order of time. Trainer first, then generators, then the others."""
    lanes: dict[str, list[Event]] = {}
    for event in events:
        if event.end > event.start:
            lanes.setdefault(event.executor, []).append(event)
    rank = {"trainer": 0, "generator": 1, "rewarder": 2}
    order = sorted(lanes, key=lambda name: (rank.get(re.split(r"[-_\d]", name)[0], 3), name))
    return {name: sorted(lanes[name], key=lambda e: (e.start, e.end)) for name in order}


def accounts(events: Sequence[Event], start: float, end: float) -> list[Account]:
    """Where the time from `start` to `end` went, for each executor."""
    total = max(end - start, 1e-9)
    found = []
    for name, spans in by_executor(events).items():
        busy_by: dict[str, list[Interval]] = {}
        idle_by: dict[str, list[Interval]] = {}
        for e in spans:
            clipped = (max(e.start, start), min(e.end, end))
            if clipped[1] > clipped[0]:
                kind, key = (idle_by, reason(e.detail.get("why", ""))) if e.what == IDLE else (busy_by, e.what)
                kind.setdefault(key, []).append(clipped)
        busy = union(i for spans in busy_by.values() for i in spans)
        gaps = without([(start, end)], busy) if end > start else []
        idle = {why: length(gaps) - length(without(gaps, union(waits))) for why, waits in idle_by.items()}
        idle[""] = idle.get("", 0.0) + length(without(gaps, union(i for waits in idle_by.values() for i in waits)))
        by_size = sorted(idle.items(), key=lambda pair: -pair[1])
        found.append(
            Account(
                executor=name,
                seconds=total,
                busy_share=length(busy) / total,
                busy={
                    what: length(union(i)) / total for what, i in sorted(busy_by.items(), key=lambda p: -length(union(p[1])))
                },
                idle={why: t / total for why, t in by_size if t > 1e-6 * total},
            )
        )
    return found
