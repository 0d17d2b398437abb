"""Every number of the run over its steps, and the histogram of lags."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from freerun.metrics import METRICS, EvalRecord
from freerun.watch.numbers import percent, quantity, shares, wilson
from freerun.watch.page.html import Html, el
from freerun.watch.page.svg import Series, bars, colour, line_chart, share_columns, smoothed
from freerun.watch.records import RunRecords, scalar

CURVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward", "mean over the trajectories trained on", ("reward/mean",)),
    ("Return while exploring", "of the episodes that ended since the last step", ("env/return",)),
    ("Episode length", "in environment steps", ("env/length",)),
    ("Entropy", "of the policy at the sampled tokens, in nats", ("entropy",)),
    ("Effective sample size", "of the importance ratios, as a share: 1 is on-policy", ("ess",)),
    ("Ratios", "current over behaviour probability of a token", ("ratio/mean", "ratio/max")),
    (
        "Generator against trainer",
        "|difference of log-probs| before the update, in nats",
        ("mismatch/abs_mean", "mismatch/abs_max", "mismatch/lag0_abs_mean"),
    ),
    ("Tokens per second", "of wall time, all executors side by side", ("throughput/generator", "throughput/trainer")),
    ("Environment steps per second", "of wall time, all actors", ("throughput/env",)),
    ("Updates per second", "of wall time", ("throughput/updates",)),
    ("Seconds per step", "from the end of one step to the end of the next", ("time/step",)),
    ("Response length", "tokens per response", ("response/length_mean", "response/length_max")),
    ("Gradient norm", "before clipping", ("grad_norm",)),
)
"""Title, explanation and metrics of each chart. Losses follow by themselves, all other metrics are below a fold."""
LAG = ("lag/mean", "lag/max")
LOGARITHMIC = ("mismatch/abs_mean", "grad_norm")


def curves(run: RunRecords, more: Sequence[Html] = ()) -> Html:
    """Every metric of the run; `more` are charts of its evaluations that others draw."""
    known = sorted({name for s in run.steps for name, value in s.metrics.items() if isinstance(value, float)})
    drawn = {*LAG, *(name for _, _, names in CURVES for name in names)}
    losses = [n for n in known if n.startswith("loss/")]
    cards = [accuracy_card(run.evaluations)] if run.evaluations else []
    cards += more
    cards += [curve_card(run, *curve) for curve in CURVES if not set(curve[2]).isdisjoint(known)]
    cards += [curve_card(run, f"Loss: {n.removeprefix('loss/')}", "as it enters the gradient", (n,)) for n in losses]
    others = [curve_card(run, n, METRICS[n].meaning if n in METRICS else "", (n,)) for n in known if n not in {*losses, *drawn}]
    if not cards:
        return el("section")
    head = [el("h2", "Curves"), el("p", "Over the trainer's steps.", class_="soft")]
    label = el("summary", f"All other metrics ({len(others)})")
    fold = el("details", label, el("div", others, class_="grid"), class_="card fold") if others else None
    return el("section", head, el("div", cards, class_="grid"), fold)


def curve_card(run: RunRecords, title: str, about: str, names: Iterable[str]) -> Html:
    """One chart with a line per metric that the run reports."""
    found = [(name, *scalar(run, name)) for name in names]
    lines = [Series(name=name, x=x, y=y, colour=i) for i, (name, x, y) in enumerate(f for f in found if f[1])]
    drawn = smoothed(lines[0]) if len(lines) == 1 else lines
    return card(title, about, line_chart(drawn, log=lines[0].name in LOGARITHMIC), lines)


def accuracy_card(evaluations: Sequence[EvalRecord]) -> Html:
    lines = []
    for i, split in enumerate(dict.fromkeys(e.split for e in evaluations)):
        own = [e for e in evaluations if e.split == split]
        lines.append(
            Series(
                name=f"{split}, {own[-1].count} problems",
                x=[float(e.step) for e in own],
                y=[e.accuracy for e in own],
                colour=i,
                bounds=[wilson(e.accuracy, e.count) for e in own],
            )
        )
    picture = line_chart(lines, fixed=(0.0, 1.0), show=lambda share: percent(share, 0))
    return card("Held-out accuracy", "with 95% intervals", picture, lines, show=percent)


def card(title: str, about: str, picture: Html, lines: Sequence[Series], *, show: Callable[[float], str] = quantity) -> Html:
    """A framed picture with its title; a single line shows its last value there, several get a legend."""
    if len(lines) == 1:
        said = el("span", show(lines[0].last), class_="now")
    else:
        said = legend({f"{s.name.rpartition('/')[2].replace('_', ' ')} {show(s.last)}": s.colour for s in lines})
    caption = el(
        "figcaption",
        el("h3", title),
        said if len(lines) == 1 else None,
        el("span", about, class_="about"),
        said if len(lines) > 1 else None,
    )
    return el("figure", caption, picture, class_="card")


def legend(entries: Mapping[str, int]) -> Html:
    """Names with their colours."""
    names = [el("span", el("i", style=f"background: {colour(i)}"), name) for name, i in entries.items()]
    return el("div", names, class_="legend")


def staleness(run: RunRecords) -> Html:
    """The lag histogram of the whole run, and how it developed."""
    counts: dict[int, float] = {}
    xs, columns = [], []
    for s in run.steps:
        by_lag = s.metrics.get("lag/tokens")
        if isinstance(by_lag, Mapping) and by_lag:
            xs.append(float(s.step))
            columns.append(shares(by_lag))
            for lag, tokens in by_lag.items():
                counts[lag] = counts.get(lag, 0.0) + tokens
    if not counts:
        return ages(run)
    colours = {lag: i for i, lag in enumerate(sorted(counts))}
    whole = shares(counts)
    largest = max(whole.values())
    rows = [
        (f"lag {lag}", share / largest, f"{share:.1%}, {quantity(counts[lag])} tokens", colours[lag])
        for lag, share in whole.items()
    ]
    steps = el("figcaption", el("h3", "Step by step"), legend({f"lag {lag}": i for lag, i in colours.items()}))
    about = "Lag of a token: the trainer's version when it trained on the token, minus the version that wrote it."
    cards = [
        el("figure", el("figcaption", el("h3", "Whole run")), bars(rows), class_="card top"),
        el("figure", steps, share_columns(xs, columns, colours), class_="card"),
        curve_card(run, "Mean and largest", "in versions", LAG) if any(scalar(run, name)[0] for name in LAG) else None,
    ]
    return el("section", el("h2", "How stale the data was"), el("p", about, class_="soft"), el("div", cards, class_="grid"))


def ages(run: RunRecords) -> Html:
    """How old replayed transitions were, where lags are too many to count."""
    if not any(scalar(run, name)[0] for name in LAG):
        return el("section")
    about = "Lag of a transition: the trainer's version when it could be drawn, minus the version that acted."
    cards = [curve_card(run, "Mean and largest", "in versions", LAG)]
    return el("section", el("h2", "How stale the data was"), el("p", about, class_="soft"), el("div", cards, class_="grid"))
