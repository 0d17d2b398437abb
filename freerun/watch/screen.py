"""What the live view shows: pure functions from the state of a run to text of a given width."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from freerun.metrics import EvalRecord, Evaluation, ExecutorStatus, Status, StepRecord, TrialRecord
from freerun.watch.numbers import bar, duration, gain_interval, headline, percent, quantity, shares, sparkline, wilson
from freerun.watch.trials import best_known, history_line, is_control, plain_trial

LABEL = 11
BUSY, IDLE_COLOUR = "green", "yellow"


@dataclass(slots=True)
class RunState:
    """What a view knows of a run. `rewards` and `step_seconds` have one entry per step since the view was opened."""

    title: str
    status: Status | None = None
    last: StepRecord | None = None
    rewards: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    tokens: float = 0.0
    evaluations: list[EvalRecord] = field(default_factory=list)
    trials: list[TrialRecord] = field(default_factory=list)

    def judged(self, record: Evaluation) -> None:
        if isinstance(record, TrialRecord):
            self.trials = [*self.trials, record]
        else:
            self.evaluations = [*self.evaluations, record]

    def take(self, record: StepRecord) -> None:
        before = self.last.seconds if self.last else record.seconds - number(record.metrics, "time/step", 0.0)
        self.step_seconds.append(max(record.seconds - before, 0.0))
        reward = number(record.metrics, "reward/mean", number(record.metrics, "env/return"))
        if not (math.isnan(reward) and is_control(record.metrics)):  # a step may end no episode
            self.rewards.append(reward)
        self.tokens += number(record.metrics, "tokens/trained", 0.0)
        self.last = record

    def seconds_left(self, total_steps: int) -> float | None:
        """By the pace of the last ten steps; None before the first."""
        recent = self.step_seconds[-10:]
        if not recent or self.last is None:
            return None
        return max(total_steps - self.last.step, 0) * sum(recent) / len(recent)


def number(metrics: Mapping[str, object], name: str, missing: float = math.nan) -> float:
    """A scalar metric; `missing` if the run does not report it."""
    value = metrics.get(name, missing)
    return float(value) if isinstance(value, int | float) else missing


def screen(state: RunState, *, now: float, width: int) -> RenderableType:
    """The whole live view at second `now`, `width` columns wide."""
    inner = width - 4
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column(width=LABEL, style="dim", no_wrap=True)
    rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    room = inner - LABEL - 1
    rows.add_row("progress", progress(state, now, room))
    if state.evaluations:
        rows.add_row("held-out", accuracy_history(state.evaluations))
    if state.trials:
        rows.add_row("judged", history_line(state.trials))
    if state.last is not None and is_control(state.last.metrics):
        if state.rewards:
            rows.add_row("return", reward_line(state, room))
        rows.add_row("speed", control_speed_line(state.last))
        rows.add_row("lag", control_lag_line(state.last))
    elif state.last is not None:
        rows.add_row("reward", reward_line(state, room))
        rows.add_row("speed", speed_line(state.last))
        rows.add_row("lag", lag_line(state.last, room))
        rows.add_row("policy", policy_line(state.last))
    if state.status is not None:
        rows.add_row("", "")
        for name, executor in state.status.executors.items():
            rows.add_row(*executor_line(name, executor, now, idle_share(state.last, name)))
        rows.add_row("", "")
        rows.add_row("items", items_line(state.status.items))
    title = Text.assemble((" freerun ", "bold"), (f"{state.title} ", "bold cyan"))
    return Panel(rows, title=title, title_align="left", box=box.ROUNDED, border_style="dim", width=width)


def progress(state: RunState, now: float, room: int) -> Text:
    """`step 12 of 40 ━━━━──── 3m 12s, about 7m left`"""
    if state.status is None:
        return Text.assemble(("starting", "bold"), (f"  {duration(now)}", "dim"))
    step, total = state.status.step, max(state.status.total_steps, 1)
    left = state.seconds_left(total)
    head = f"step {step} of {total} "
    tail = f" {duration(now)}" + (f", about {duration(left)} left" if left else "")
    cells = max(room - len(head) - len(tail), 0)
    done = min(round(cells * step / total), cells)
    return Text.assemble((head, "bold"), ("━" * done, "cyan"), ("─" * (cells - done), "dim"), tail)


def accuracy_history(evaluations: list[EvalRecord]) -> Text:
    """The first accuracy and the last few, with the size and step of the last."""
    shown = evaluations if len(evaluations) <= 5 else [evaluations[0], *evaluations[-4:]]
    line = Text()
    for i, record in enumerate(shown):
        if i:
            line.append(" … " if i == 1 and len(shown) < len(evaluations) else " → ", "dim")
        line.append(percent(record.accuracy), "bold" if i == len(shown) - 1 else "")
    return line.append(f"  {shown[-1].count} problems, step {shown[-1].step}", "dim")


def reward_line(state: RunState, room: int) -> Text:
    return Text.assemble((f"{state.rewards[-1]:.3f}", "bold"), " ", (sparkline(state.rewards, max(room - 8, 8)), "cyan"))


def speed_line(last: StepRecord) -> Text:
    generator, trainer, items = (number(last.metrics, f"throughput/{n}") for n in ("generator", "trainer", "items"))
    seconds = number(last.metrics, "time/step")
    return Text.assemble(
        (quantity(generator), "bold"),
        (" tok/s generated  ", "dim"),
        (quantity(trainer), "bold"),
        (" trained  ", "dim"),
        (quantity(items), "bold"),
        (" items/s  ", "dim"),
        (duration(seconds), "bold"),
        (" a step", "dim"),
        no_wrap=False,
        overflow="fold",
    )


def control_speed_line(last: StepRecord) -> Text:
    env, updates, total = (number(last.metrics, n) for n in ("throughput/env", "throughput/updates", "env/total"))
    parts = [(quantity(total), "bold"), (" environment steps  ", "dim"), (quantity(env), "bold"), ("/s  ", "dim")]
    return Text.assemble(*parts, (quantity(updates), "bold"), (" updates/s", "dim"), no_wrap=False, overflow="fold")


def control_lag_line(last: StepRecord) -> Text:
    """How old the data is that is trained on."""
    mean, largest = (number(last.metrics, n) for n in ("lag/mean", "lag/max"))
    return Text.assemble(("mean ", "dim"), (quantity(mean), "bold"), ("   largest ", "dim"), (quantity(largest), "bold"))


def lag_line(last: StepRecord, room: int) -> Text:
    """The histogram of token lags as bars side by side: `0 ███ 23%  1 ██████████ 77%`"""
    counts = last.metrics.get("lag/tokens", {})
    by_lag = shares(counts) if isinstance(counts, Mapping) else {}
    if not by_lag:
        return Text("–", "dim")
    shown = dict(sorted(sorted(by_lag.items(), key=lambda pair: -pair[1])[:6]))
    cells = max(room - 11 * len(shown), len(shown))  # a lag of up to three digits, three blanks, up to "100%"
    line = Text()
    for lag, share in shown.items():
        line.append(f"{lag} ", "dim").append(bar(share, cells), "magenta").append(f" {share:.0%}  ")
    return line


def policy_line(last: StepRecord) -> Text:
    """How far the policies are apart: effective sample size, largest ratio, disagreement of generator and trainer."""
    ess, ratio, mean, largest = (number(last.metrics, n) for n in ("ess", "ratio/max", "mismatch/abs_mean", "mismatch/abs_max"))
    return Text.assemble(
        ("ess ", "dim"),
        (quantity(ess), "bold"),
        ("   ratio max ", "dim"),
        (quantity(ratio), "bold"),
        ("   mismatch ", "dim"),
        (quantity(mean), "bold"),
        (" max ", "dim"),
        (quantity(largest), "bold"),
        (" nats", "dim"),
        no_wrap=False,
        overflow="fold",
    )


def executor_line(name: str, executor: ExecutorStatus, now: float, idle: float) -> tuple[Text, Text]:
    busy = executor.state == "busy"
    line = Text.assemble(("● busy ", BUSY) if busy else ("○ idle ", IDLE_COLOUR), (f"{duration(now - executor.since):>6}", ""))
    if not math.isnan(idle):
        line.append(f"  {idle:4.0%} idle", "dim")
    return Text(name, "bold", overflow="ellipsis", no_wrap=True), line.append(f"  {executor.what}")


def idle_share(last: StepRecord | None, name: str) -> float:
    return number(last.metrics, f"idle/{name}") if last else math.nan


def items_line(items: Mapping[str, int]) -> Text:
    """The ledger without its totals by reason, and without what is zero, `dropped` excepted."""
    parts = [(n.replace("_", " "), c) for n, c in items.items() if "/" not in n and n != "admitted" and (c or n == "dropped")]
    line = Text(no_wrap=False, overflow="fold")
    for i, (state, count) in enumerate(parts):
        line.append(" · " if i else "", "dim").append(f"{count:,} ", "red bold" if state == "dropped" and count else "bold")
        line.append(state, "dim")
    return line


def ending(state: RunState) -> RenderableType:
    """What stays on the screen: held-out accuracy before and after with a 95% interval, the reward's curve, the total time."""
    parts: list[RenderableType] = []
    records = headline(state.evaluations)
    if records:
        parts.append(accuracy_table(records))
    trials = best_known(state.trials)
    if trials:
        parts += [Text(plain_trial(trial)) for trial in (trials[0], *trials[1:][-1:])]
    if state.last is not None and is_control(state.last.metrics):
        parts.append(Text(f"{state.last.step} steps in {duration(state.last.seconds)}"))
        parts.append(Text(f"return {sparkline(state.rewards, 60)}"))
    elif state.last is not None:
        steps, tokens = state.last.step, quantity(state.tokens)
        parts.append(Text(f"{steps} steps, {tokens} tokens trained in {duration(state.last.seconds)}"))
        parts.append(Text(f"reward {sparkline(state.rewards, 60)}"))
    return Group(*parts)


def accuracy_table(records: list[EvalRecord]) -> Table:
    """First and last evaluation of one split, with Wilson intervals, and their difference with Newcombe's interval."""
    table = Table(box=box.SIMPLE_HEAD, title="held-out accuracy", title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("problems", justify="right")
    first, last = records[0], records[-1]
    cells = [f"{last.count}\n"]
    for label, record in (("before", first), ("after", last))[: len(records)]:
        low, high = wilson(record.accuracy, record.count)
        table.add_column(f"{label} (step {record.step})", justify="right", style="bold" if label == "after" else "")
        cells.append(f"{percent(record.accuracy)}\n{percent(low)} – {percent(high)}")
    if len(records) > 1:
        low, high = gain_interval(first.accuracy, first.count, last.accuracy, last.count)
        table.add_column("gain in points", justify="right", style="green" if low > 0 else "")
        cells.append(f"{100 * (last.accuracy - first.accuracy):+.1f}\n{100 * low:+.1f} – {100 * high:+.1f}")
    table.add_row(*cells)
    table.caption, table.caption_justify = "second line: 95% intervals", "left"
    return table


def plain_step(record: StepRecord, total_steps: int, seconds: float) -> str:
    """One line per step for logs: what the live view shows, without the bars."""
    m = record.metrics
    of = f"/{total_steps}" if total_steps else ""
    idle = ", ".join(f"{n.removeprefix('idle/')} {number(m, n):.0%}" for n in m if n.startswith("idle/"))
    parts = [
        f"step {record.step}{of}",
        duration(seconds),
        f"reward {number(m, 'reward/mean'):.3f}",
        f"lag {number(m, 'lag/mean'):.2f} max {number(m, 'lag/max'):.0f}",
        f"ess {number(m, 'ess'):.3f}",
        f"mismatch {quantity(number(m, 'mismatch/abs_mean'))}",
        f"tok/s {quantity(number(m, 'throughput/generator'))} generated, {quantity(number(m, 'throughput/trainer'))} trained",
        *([f"idle {idle}"] if idle else []),
    ]
    return " | ".join(parts)


def plain_evaluation(record: EvalRecord) -> str:
    low, high = wilson(record.accuracy, record.count)
    return (
        f"held-out accuracy after step {record.step}: {percent(record.accuracy)} of {record.count} problems "
        f"({percent(low)} – {percent(high)})"
    )
