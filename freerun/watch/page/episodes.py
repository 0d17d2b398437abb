"""The parts of the report that only control runs have: returns before and after, their curve, and a picture of the policy."""

import base64
from collections.abc import Sequence
from pathlib import Path

from freerun.metrics import TrialRecord
from freerun.rundir import PICTURES
from freerun.watch.numbers import quantity
from freerun.watch.page.curves import card
from freerun.watch.page.html import Html, el
from freerun.watch.page.svg import Axis, Series, line_chart
from freerun.watch.records import RunRecords
from freerun.watch.trials import best_known, spread

WIDTH, INSET, ROW = 440.0, 10.0, 18.0
LARGEST = 8 << 20
"""Bytes of a picture that are put into a page."""


def before_and_after_returns(trials: Sequence[TrialRecord]) -> Html:
    """Mean returns of the largest split, coloured only if their 95% intervals do not meet."""
    records = best_known(trials)
    first, last = records[0], records[-1]
    num = len(last.returns)
    score = "" if last.score is None else f", normalised score {last.score:.1f} (0 random, 100 expert)"
    said = f"mean of {num} episodes, standard deviation {quantity(last.std)}{score}"
    if len(records) == 1:
        return _card([quantity(last.mean)], f"{said}, after step {last.step}", [last], "after")
    (_, first_high), (low, high) = spread(first), spread(last)
    look = "after good" if low > first_high else "after bad" if high < spread(first)[0] else "after"
    said += f"; before and after {last.step} steps, {last.taken:,} environment steps"
    return _card([quantity(first.mean), quantity(last.mean)], said, [first, last], look)


def _card(values: Sequence[str], said: str, trials: Sequence[TrialRecord], look: str) -> Html:
    change = [el("span", "→", class_="arrow"), el("span", values[1], class_=look)] if len(values) > 1 else None
    large = el("div", values[0], change, class_="big")
    return el("div", el("h3", "Return"), large, el("p", said, class_="soft small"), dots(trials), class_="card")


def dots(trials: Sequence[TrialRecord]) -> Html:
    """Every episode as a dot, the mean as a line, one row per trial."""
    low = min(r for t in trials for r in t.returns)
    high = max(r for t in trials for r in t.returns)
    axis = Axis(low, high if high > low else low + 1, INSET, WIDTH - INSET)
    foot = ROW * len(trials)
    parts = []
    for i, trial in enumerate(trials):
        y, shade = 12 + ROW * i, "var(--c0)" if i == len(trials) - 1 else "var(--soft)"
        marks = [el("circle", cx=axis(r), cy=y, r=4, fill=shade, opacity=0.35) for r in trial.returns]
        x = axis(trial.mean)
        mean = el("line", x1=x, x2=x, y1=y - 8, y2=y + 8, stroke=shade, stroke_width=3)
        parts.append(el("g", el("title", f"after step {trial.step}: {quantity(trial.mean)}"), marks, mean))
    parts += [
        el("text", quantity(value), x=axis(value), y=foot + 28, text_anchor=anchor)
        for value, anchor in ((low, "start"), (axis.high, "end"))
    ]
    return el("svg", parts, viewBox=f"0 0 {WIDTH:g} {foot + 34:g}", role="img")


def returns_card(trials: Sequence[TrialRecord]) -> Html:
    """Returns of all evaluations over environment steps, or over the trainer's steps where there are no actors."""
    moving = trials[-1].taken > 0
    lines = [
        Series(
            name=f"{split}, {len(own[-1].returns)} episodes",
            x=[float(t.taken if moving else t.step) for t in own],
            y=[t.mean for t in own],
            colour=i,
            bounds=[spread(t) for t in own],
        )
        for i, split in enumerate(dict.fromkeys(t.split for t in trials))
        for own in [[t for t in trials if t.split == split]]
    ]
    about = f"greedy, over {'environment steps' if moving else 'steps'}, with 95% intervals of the mean"
    return card("Return", about, line_chart(lines), lines)


def pictures(run: RunRecords) -> Html:
    """The policy in motion: the first and the last picture that the run made."""
    made = [t for t in run.trials if t.picture and is_in(run.path / PICTURES, t.picture)]
    shown = made[:1] if len(made) == 1 else [made[0], made[-1]] if made else []
    figures = []
    for trial in shown:
        data = (run.path / PICTURES / trial.picture).read_bytes()
        if len(data) > LARGEST:
            continue
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        about = f"after step {trial.step}, mean return {quantity(trial.mean)}"
        caption = el("figcaption", el("h3", "One episode"), el("span", about, class_="about"))
        figures.append(el("figure", caption, el("img", src=source, alt=about), class_="card"))
    if not figures:
        return el("section")
    return el("section", el("h2", "What the policy does"), el("div", figures, class_="grid"))


def is_in(folder: Path, name: str) -> bool:
    """Whether `folder` has a file of that name. The name is from a log that anybody may have written: it must not lead
    to a file elsewhere, which a page that is passed on would then show."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())
