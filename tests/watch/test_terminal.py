"""The live view: what it shows at which width, in a terminal and in a pipe."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from freerun.metrics import EvalRecord, Event, ExecutorStatus, Status, StepRecord
from freerun.watch.numbers import bar, binned, duration, gain_interval, headline, quantity, sparkline, wilson
from freerun.watch.screen import RunState, screen
from freerun.watch.terminal import Terminal


def a_pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def a_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, height=40, force_terminal=True, _environ={"TERM": "xterm-256color"})


def shown(state: RunState, *, width: int, now: float) -> list[str]:
    console = a_pipe(width)
    console.print(screen(state, now=now, width=width))
    return console.file.getvalue().splitlines()


def state_of(run: object) -> RunState:
    state = RunState("smollm-addition")
    for record in run.records():
        match record:
            case StepRecord():
                state.take(record)
            case EvalRecord():
                state.evaluations.append(record)
            case Status():
                state.status = record
    return state


# --- the picture -------------------------------------------------------------------------------------------------------------


def test_the_view_shows_everything_that_a_reader_asks_of_a_run(fake_run) -> None:
    state = state_of(fake_run(steps=12))
    text = "\n".join(shown(state, width=80, now=state.status.seconds))
    for wanted in (
        "step 12 of 12",
        "held-out",
        "reward",
        "▁",
        "tok/s generated",
        "trained",
        "lag",
        "█",
        "ess",
        "mismatch",
        "generator",
        "● busy",
        "trainer",
        "○ idle",
        "waiting for groups 4 to 12",
        "21 in flight",
        "0 dropped",
    ):
        assert wanted in text, wanted


@pytest.mark.parametrize("width", [40, 60, 80, 110])
def test_the_view_fits_its_width_exactly(fake_run, width: int) -> None:
    lines = shown(state_of(fake_run(steps=9)), width=width, now=100.0)
    assert {len(line) for line in lines} == {width}


def test_the_view_of_80_columns_cuts_nothing_off(fake_run) -> None:
    assert not any("…" in line.replace(" … ", "") for line in shown(state_of(fake_run(steps=40)), width=80, now=700.0))


def test_before_the_first_status_the_view_says_that_the_run_is_starting() -> None:
    assert "starting  3.2s" in "\n".join(shown(RunState("x"), width=80, now=3.2))


def test_a_run_that_reports_few_metrics_is_shown_with_dashes() -> None:
    state = RunState("x")
    state.take(StepRecord(step=1, version=1, seconds=2.0, metrics={"reward/mean": float("nan")}))
    assert "ess –" in "\n".join(shown(state, width=80, now=2.0))


def test_the_time_left_is_by_the_pace_of_the_last_ten_steps() -> None:
    state = RunState("x")
    for step in range(1, 21):
        seconds = 100.0 * step if step <= 10 else 1000.0 + 2.0 * (step - 10)
        state.take(StepRecord(step=step, version=step, seconds=seconds, metrics={}))
    assert state.seconds_left(30) == pytest.approx(20.0)
    assert RunState("x").seconds_left(30) is None


def test_text_from_the_run_is_not_markup() -> None:
    executors = {"generator": ExecutorStatus(state="idle", what="[bold]weights[/bold]", since=0.0)}
    state = RunState("[red]x[/red]", status=Status(step=0, total_steps=5, seconds=1.0, executors=executors))
    text = "\n".join(shown(state, width=80, now=1.0))
    assert "[bold]weights[/bold]" in text and "[red]x[/red]" in text


# --- the sink ----------------------------------------------------------------------------------------------------------------


def test_in_a_pipe_each_step_and_each_evaluation_is_one_plain_line(fake_run) -> None:
    console = a_pipe()
    view = Terminal("x", console=console)
    fake_run(steps=11).play(view)
    lines = console.file.getvalue().splitlines()
    assert sum(line.startswith("step ") for line in lines) == 11
    assert sum(line.startswith("held-out accuracy after step") for line in lines) == 4
    assert sum("checkpoint (step 10)" in line for line in lines) == 1
    assert len(lines) == 16 and "\x1b" not in console.file.getvalue()


def test_a_dumb_terminal_gets_plain_lines(fake_run) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "dumb"})
    view = Terminal("x", console=console)
    fake_run(steps=2).play(view)
    view.close()
    assert "step 2/2" in console.file.getvalue()


def test_the_end_shows_accuracy_before_and_after_with_problems_interval_time_and_paths(fake_run) -> None:
    long = Path("runs") / ("a-rather-long-name-of-a-recipe-" * 4)
    console = a_pipe()
    view = Terminal("x", console=console, run_dir=long, report=long / "report.html")
    fake_run(steps=40).play(view)
    console.file = io.StringIO()
    view.close()
    text = console.file.getvalue()
    for wanted in (
        "256",
        "before (step 0)",
        "after (step 40)",
        "34.8%",
        "29.2% – 40.8%",
        "gain",
        "40 steps",
        "10m",
        str(long),
        str(long / "report.html"),
    ):
        assert wanted in text, wanted


def test_a_resumed_run_compares_with_the_evaluation_before_the_first_attempt() -> None:
    console = a_pipe()
    record = EvalRecord(step=0, split="heldout", accuracy=0.25, count=256, oldest=0, newest=0, seconds=1.0)
    view = Terminal("x", console=console, earlier=[record])
    view.evaluation(replace(record, step=9, accuracy=0.75))
    view.close()
    assert "+50.0" in console.file.getvalue()


def test_a_run_that_ended_before_its_first_evaluation_still_says_where_its_records_are() -> None:
    console = a_pipe()
    Terminal("x", console=console, run_dir=Path("runs/x")).close()
    assert "runs/x" in console.file.getvalue()


def test_in_a_terminal_the_view_is_drawn_live_and_taken_away_at_the_end(fake_run) -> None:
    console = a_terminal()
    view = Terminal("smollm-addition", console=console)
    fake_run(steps=10).play(view)
    view._live.refresh()
    assert "step 10 of 10" in console.file.getvalue()
    assert "checkpoint (step 10)" in console.file.getvalue()
    view.close()
    view.close()
    assert "\x1b[?25h" in console.file.getvalue(), "the cursor is shown again"
    assert console.file.getvalue().count("held-out accuracy") == 1


def test_the_clock_of_the_view_goes_on_between_two_statuses() -> None:
    now = [50.0]
    console = a_terminal()
    view = Terminal("x", console=console, clock=lambda: now[0], began=100.0)
    view.status(Status(step=0, total_steps=5, seconds=103.0, executors={}))
    now[0] = 57.0
    view._live.refresh()
    view.close()
    assert "1m 50s" in console.file.getvalue()


def test_a_span_of_time_is_no_line_but_a_moment_is() -> None:
    console = a_pipe()
    view = Terminal("x", console=console)
    view.event(Event(executor="generator", what="generate", start=1.0, end=2.0))
    assert console.file.getvalue() == ""
    view.event(Event(executor="generator", what="died", start=65.0, end=65.0, detail={"why": "killed [9]"}))
    assert console.file.getvalue() == "1m 05s generator: died (why killed [9])\n"


# --- numbers -----------------------------------------------------------------------------------------------------------------


def test_the_wilson_interval_is_that_of_newcombes_table() -> None:
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20 and 1/29.
    for share, count, low, high in (
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ):
        assert wilson(share, count) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_gain_is_that_of_newcombes_table() -> None:
    # Newcombe (1998), second paper, table II, method 10: 56/70 - 48/80 and 10/10 - 0/10.
    assert gain_interval(48 / 80, 80, 56 / 70, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert gain_interval(0.0, 10, 1.0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_the_headline_is_the_split_with_the_most_problems() -> None:
    def of(split: str, count: int, step: int) -> EvalRecord:
        return EvalRecord(step=step, split=split, accuracy=0.5, count=count, oldest=0, newest=0, seconds=0.0)

    records = [of("full", 256, 0), of("quick", 64, 5), of("full", 256, 10)]
    assert [r.step for r in headline(records)] == [0, 10]
    assert headline([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (3599.7, "1h 00m"),
        (7620, "2h 07m"),
        (float("nan"), "–"),
        (-1.0, "0.0s"),
    ],
)
def test_durations_never_show_sixty(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00421, "0.00421"),
        (1.5e-6, "1.5e-06"),
        (412.4, "412"),
        (12300, "12,300"),
        (1.2e6, "1.2M"),
        (-3.14159, "-3.14"),
        (float("inf"), "∞"),
        (float("nan"), "–"),
    ],
)
def test_quantities_have_about_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


def test_a_sparkline_spans_its_range_and_marks_what_is_not_finite() -> None:
    assert sparkline([0.0, 1.0], 10) == "▁█"
    assert sparkline([2.0, 2.0], 10) == "▄▄"
    assert sparkline([0.0, float("nan"), 1.0], 10) == "▁?█"
    assert sparkline([], 10) == ""


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 50))
def test_binning_keeps_the_order_the_range_and_at_most_the_width(values: list[float], width: int) -> None:
    bins = binned(values, width)
    assert len(bins) == min(len(values), width)
    assert min(values) - 1e-6 <= min(bins) and max(bins) <= max(values) + 1e-6


@settings(deadline=None)
@given(st.floats(-1, 2), st.integers(0, 40))
def test_a_bar_never_exceeds_its_cells(share: float, width: int) -> None:
    assert len(bar(share, width)) <= width
