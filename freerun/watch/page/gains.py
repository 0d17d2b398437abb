"""The top of the report: before and after in large type, and the numbers that a reader asks for first."""

import math
from collections.abc import Sequence

from freerun.metrics import EvalRecord
from freerun.watch.numbers import duration, gain_interval, headline, percent, quantity, wilson
from freerun.watch.page.episodes import before_and_after_returns
from freerun.watch.page.html import Html, el
from freerun.watch.records import RunRecords, scalar

WIDTH, INSET, ROW = 440.0, 10.0, 18.0


def hero(run: RunRecords) -> Html:
    cards = [el("div", el("b", n), el("span", label, class_="soft small"), class_="card tile") for n, label in tiles(run)]
    return el("section", before_and_after(run), el("div", cards, class_="tiles"), class_="hero")


def before_and_after(run: RunRecords) -> Html:
    """Held-out accuracy of the largest split, coloured only if the interval of the gain excludes 0; without evaluations the
    reward, which says less and says so."""
    if run.trials:
        return before_and_after_returns(run.trials)
    records = headline(run.evaluations)
    if len(records) > 1:
        first, last = records[0], records[-1]
        low, high = gain_interval(first.accuracy, first.count, last.accuracy, last.count)
        said = (
            f"{100 * (last.accuracy - first.accuracy):+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}), "
            f"{last.count} problems that training never saw, before and after {last.step} steps"
        )
        look = "after good" if low > 0 else "after bad" if high < 0 else "after"
        values = [percent(first.accuracy), percent(last.accuracy)]
        return _card("Held-out accuracy", values, said, whiskers([first, last]), look)
    if records:
        said = f"of {records[0].count} problems that training never saw, after step {records[0].step}"
        return _card("Held-out accuracy", [percent(records[0].accuracy)], said, whiskers(records))
    rewards = scalar(run, "reward/mean")[1] or scalar(run, "env/return")[1]
    if not rewards:
        return _card("Nothing measured yet", ["–"], "neither an evaluation nor a step is recorded", None)
    few = max(1, len(rewards) // 10)
    ends = [quantity(sum(values) / few) for values in (rewards[:few], rewards[-few:])]
    return _card("Training reward", ends, f"mean of the first and the last {few} steps; nothing was held out", None)


def _card(title: str, values: Sequence[str], said: str, picture: Html | None, look: str = "after") -> Html:
    change = [el("span", "→", class_="arrow"), el("span", values[1], class_=look)] if len(values) > 1 else None
    large = el("div", values[0], change, class_="big")
    return el("div", el("h3", title), large, el("p", said, class_="soft small"), picture, class_="card")


def whiskers(records: Sequence[EvalRecord]) -> Html:
    """Accuracies with their intervals on a line from 0 to 100%."""

    def x(share: float) -> float:
        return INSET + share * (WIDTH - 2 * INSET)

    foot = ROW * len(records)
    parts = [el("line", class_="gridline", x1=x(s), x2=x(s), y1=2.0, y2=foot + 14) for s in (0.0, 0.5, 1.0)]
    labels = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    parts += [el("text", f"{share:.0%}", x=x(share), y=foot + 28, text_anchor=anchor) for share, anchor in labels]
    for i, record in enumerate(records):
        low, high = wilson(record.accuracy, record.count)
        y, shade = 12 + ROW * i, "var(--c0)" if i == len(records) - 1 else "var(--soft)"
        said = f"after step {record.step}: {percent(record.accuracy)}, 95% interval {percent(low)} to {percent(high)}"
        line = el("line", x1=x(low), x2=x(high), y1=y, y2=y, stroke=shade, stroke_width=7, stroke_linecap="round", opacity=0.35)
        parts.append(el("g", el("title", said), line, el("circle", cx=x(record.accuracy), cy=y, r=6, fill=shade)))
    return el("svg", parts, viewBox=f"0 0 {WIDTH:g} {foot + 34:g}", role="img")


def tiles(run: RunRecords) -> list[tuple[str, str]]:
    """(number, label) of the small cards; only what the run reports."""

    def mean(name: str) -> float:
        values = scalar(run, name)[1]
        finite = [v for v in values[1:] or values if math.isfinite(v)]  # the first step warms up
        return sum(finite) / len(finite) if finite else math.nan

    lags, tokens, items = (scalar(run, name)[1] for name in ("lag/max", "tokens/trained", "items/trained"))
    found = [
        (duration(run.seconds), "total time"),
        (quantity(sum(tokens) if tokens else math.nan), "tokens trained on"),
        (quantity(items[-1] if items else math.nan), "items trained on"),
        (quantity(max(lags, default=math.nan)), "largest lag, in versions"),
        (quantity(max(scalar(run, "env/total")[1], default=math.nan)), "environment steps"),
        (quantity(mean("throughput/env")), "environment steps/s"),
        (quantity(mean("throughput/updates")), "updates/s"),
        (quantity(mean("throughput/generator")), "tokens/s generated"),
        (quantity(mean("throughput/trainer")), "tokens/s trained"),
        (quantity(mean("ess")), "effective sample size"),
        (quantity(mean("mismatch/abs_mean")), "log-prob mismatch, nats"),
    ]
    return [(value, label) for value, label in found if value != "–"]
