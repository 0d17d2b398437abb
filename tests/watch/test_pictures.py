"""The pictures of the report and the accounting behind the timeline."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.metrics import IDLE, Event
from freerun.watch.page.accounts import accounts, by_executor, length, union, without
from freerun.watch.page.svg import MAX_POINTS, Series, bars, line_chart, share_columns, smoothed, thinned, ticks, value_axis
from freerun.watch.page.timeline import clock, detail, kinds, overview, windows

INTERVAL = st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda p: (float(p[0]), float(p[0] + p[1])))
INTERVALS = st.lists(INTERVAL, max_size=12)


def span(executor: str, what: str, start: float, end: float, **detail: object) -> Event:
    return Event(executor=executor, what=what, start=start, end=end, detail=detail)


# --- intervals ---------------------------------------------------------------------------------------------------------------


def seconds_of(spans: list[tuple[float, float]]) -> set[int]:
    """The whole seconds that intervals with whole ends cover."""
    return {t for start, end in spans for t in range(int(start), int(end))}


@settings(deadline=None)
@given(INTERVALS)
def test_a_union_covers_the_same_seconds_once(spans: list[tuple[float, float]]) -> None:
    merged = union(spans)
    assert seconds_of(merged) == seconds_of(spans)
    assert length(merged) == len(seconds_of(spans))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


@settings(deadline=None)
@given(INTERVALS, INTERVALS)
def test_what_lies_without_holes_is_the_difference_of_the_seconds(spans: list, holes: list) -> None:
    left = without(union(spans), union(holes))
    assert seconds_of(left) == seconds_of(spans) - seconds_of(holes)
    assert length(left) == len(seconds_of(left))


# --- accounting --------------------------------------------------------------------------------------------------------------


def test_an_account_says_who_was_busy_with_what_and_waited_for_what() -> None:
    waits = [
        span("trainer", IDLE, 5, 8, why="groups 3 to 12 of step 7"),
        span("trainer", IDLE, 8, 9, why="groups 1 to 4 of step 8"),
    ]
    events = [span("trainer", "train", 0, 4), span("trainer", "publish", 3, 5), *waits]
    (account,) = accounts(events, 0.0, 10.0)
    assert account.busy_share == pytest.approx(0.5)
    assert account.busy == pytest.approx({"train": 0.4, "publish": 0.2})
    assert account.idle == pytest.approx({"groups N to N of step N": 0.4, "": 0.1})


def test_a_wait_that_overlaps_work_counts_as_work() -> None:
    (account,) = accounts([span("rewarder", IDLE, 0, 10, why="groups"), span("rewarder", "score", 2, 4)], 0.0, 10.0)
    assert account.busy_share == pytest.approx(0.2) and account.idle == pytest.approx({"groups": 0.8})


def test_only_the_asked_stretch_of_time_counts() -> None:
    (account,) = accounts([span("trainer", "train", 0, 100)], 50.0, 200.0)
    assert account.busy_share == pytest.approx(1 / 3)


@settings(deadline=None)
@given(INTERVALS, INTERVALS)
def test_busy_and_idle_of_an_executor_add_up_to_the_whole(work: list, waits: list) -> None:
    events = [span("e", "work", *s) for s in work] + [span("e", IDLE, *s, why="x") for s in waits]
    for account in accounts(events, 0.0, 80.0):
        assert account.busy_share + sum(account.idle.values()) == pytest.approx(1.0)


def test_the_trainer_comes_first_and_instants_make_no_lane() -> None:
    events = [span(name, "x", 0, 1) for name in ("rewarder", "generator-1", "agent", "generator-0", "trainer")]
    assert list(by_executor([*events, span("controller", "checkpoint", 1, 1)])) == [
        "trainer",
        "generator-0",
        "generator-1",
        "rewarder",
        "agent",
    ]


# --- timeline ----------------------------------------------------------------------------------------------------------------


def test_usual_kinds_of_work_have_the_same_colour_in_every_report() -> None:
    few = kinds([span("trainer", "train", 0, 1)])
    many = kinds([span("g", "generate", 0, 9), span("trainer", "train", 0, 1), span("x", "dream", 0, 1), span("x", IDLE, 1, 2)])
    assert few["train"] == many["train"] and len(set(many.values())) == 3 and IDLE not in many


def test_a_short_run_is_shown_whole_and_a_long_one_at_both_ends() -> None:
    assert windows([1.0, 2.0], 2.5) == [("The whole run", 0.0, 2.5)]
    (_, start, end), (_, late, last) = windows([10.0 * i for i in range(1, 21)], 200.0)
    assert (start, end, late, last) == (10.0, 40.0, 170.0, 200.0)


def test_spans_that_overlap_get_rows_of_their_own_and_the_others_the_full_height() -> None:
    alone = detail([span("a", "train", 0, 4), span("a", "train", 5, 9)], {"train": 0}, 0.0, 10.0, [])
    overlapping = detail([span("a", "score", 0, 6), span("a", "score", 4, 9)], {"score": 0}, 0.0, 10.0, [])
    heights = {float(h) for h in re.findall(r'height="([\d.]+)" rx="1.5" class="span"', overlapping)}
    assert heights == {16.0}
    assert set(re.findall(r'height="([\d.]+)" rx="1.5" class="span"', alone)) == {"34"}


def test_thousands_of_short_spans_make_a_picture_that_is_not_larger_than_the_eye_can_see() -> None:
    events = [span("generator", "generate", i * 0.01, i * 0.01 + 0.009) for i in range(20000)]
    assert detail(events, {"generate": 0}, 0.0, 200.0, []).count("<rect") < 2500
    assert overview(events, {"generate": 0}, 200.0).count("<rect") < 250


def test_the_overview_never_fills_more_than_its_lane_even_where_work_overlaps() -> None:
    events = [span("a", "score", 0, 10), span("a", "train", 0, 10), span("a", "train", 2, 8)]
    picture = overview(events, {"score": 0, "train": 1}, 10.0)
    tops = [float(y) for y in re.findall(r'y="([\d.-]+)" height="[\d.]+" fill', picture)]
    assert tops and min(tops) >= 14.0 - 1e-6


def test_marks_outside_the_window_are_not_drawn() -> None:
    picture = detail([span("a", "train", 0, 10)], {"train": 0}, 0.0, 10.0, [(5.0, "v1"), (15.0, "v2")])
    assert "v1" in picture and "v2" not in picture


def test_clock_labels_of_one_axis_have_one_form() -> None:
    assert [clock(2.5, 30), clock(9.0, 130), clock(125.0, 130), clock(3725.0, 4000)] == ["2.5s", "0:09", "2:05", "1:02:05"]


# --- charts ------------------------------------------------------------------------------------------------------------------


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0])
    assert ticks(0.37, 0.84) == pytest.approx([0.4, 0.6, 0.8])
    assert ticks(1, 40, 5) == pytest.approx([10, 20, 30, 40])
    assert ticks(3.0, 3.0) == [3.0]


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_never_leave_the_range_and_are_never_too_many(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    assert len(found) <= count + 2
    assert all(low - 1e-6 * span <= t <= low + span + 1e-6 * (span + abs(low)) for t in found)


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40), st.booleans())
def test_any_series_can_be_drawn_and_every_coordinate_is_a_number(values: list[float], log: bool) -> None:
    picture = line_chart(smoothed(Series(name="x", x=[float(i) for i in range(len(values))], y=values)), log=log)
    path = "".join(re.findall(r' d="([^"]*)"', picture))
    assert all(math.isfinite(float(n)) for n in re.findall(r"[-\w.]+", path.replace("M", " ").replace("L", " ")))


def test_an_axis_is_logarithmic_only_where_values_are_positive_and_far_apart() -> None:
    assert value_axis([1e-6, 1.0], fixed=None, log=True).log
    assert not value_axis([0.0, 1.0], fixed=None, log=True).log
    assert not value_axis([0.5, 1.0], fixed=None, log=True).log


def test_a_long_series_is_thinned_by_averaging() -> None:
    xs = [float(i) for i in range(10 * MAX_POINTS)]
    series = thinned(Series(name="x", x=xs, y=[x % 2 for x in xs]))
    assert len(series.x) == MAX_POINTS and set(series.y) == {0.5}


def test_charts_of_nothing_are_empty_pictures() -> None:
    for picture in (line_chart([]), share_columns([], [], {}), bars([])):
        assert picture.startswith("<svg")


def test_the_values_of_a_step_are_said_on_hover() -> None:
    picture = line_chart([Series(name="mean", x=[1.0, 2.0], y=[0.25, 0.5]), Series(name="max", x=[2.0], y=[1.0])])
    assert "<title>step 2\nmean: 0.5\nmax: 1</title>" in picture
