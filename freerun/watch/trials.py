"""Returns of episodes for people: text for the terminal, and the numbers that the report draws."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from freerun.metrics import StepRecord, TrialRecord
from freerun.watch.numbers import Z95, duration, quantity, sparkline


def spread(trial: TrialRecord) -> tuple[float, float]:
    """A 95% interval of the mean return, by the normal approximation; the mean twice for a single episode."""
    num = len(trial.returns)
    half = Z95 * trial.std / math.sqrt(num - 1) if num > 1 else 0.0
    return trial.mean - half, trial.mean + half


def best_known(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials of the split with the most episodes, which is the one that "before and after" speaks of."""
    split = max(trials, key=lambda t: len(t.returns)).split if trials else ""
    return [t for t in trials if t.split == split]


def history_line(trials: Sequence[TrialRecord]) -> str:
    """Mean returns of all trials in order, the last with its spread."""
    last = trials[-1]
    curve = sparkline([t.mean for t in trials], 24)
    return f"{curve}  {quantity(last.mean)} ± {quantity(last.std)}  {len(last.returns)} episodes, step {last.step}"


def plain_trial(trial: TrialRecord) -> str:
    """One line for logs."""
    score = "" if trial.score is None else f", normalised score {trial.score:.1f}"
    return (
        f"return after step {trial.step}, {trial.taken:,} environment steps: {quantity(trial.mean)} ± {quantity(trial.std)} "
        f"over {len(trial.returns)} episodes of {trial.length:.0f} steps{score}"
    )


def plain_control_step(record: StepRecord, total_steps: int, seconds: float) -> str:
    """One line per step of a control run for logs: only what the step has."""
    m = record.metrics
    parts = [f"step {record.step}" + (f"/{total_steps}" if total_steps else ""), duration(seconds)]
    for name, label in (
        ("env/total", "env steps"),
        ("env/return", "return"),
        ("lag/mean", "lag"),
        ("lag/max", "max"),
        ("throughput/env", "env/s"),
        ("throughput/updates", "updates/s"),
    ):
        value = m.get(name)
        if is_number(value):
            parts.append(f"{label} {quantity(value)}")
    losses = [f"{n.removeprefix('loss/')} {quantity(v)}" for n, v in m.items() if n.startswith("loss/") and is_number(v)]
    idle = [f"{n.removeprefix('idle/')} {v:.0%}" for n, v in m.items() if n.startswith("idle/") and is_number(v)]
    parts += ["loss " + ", ".join(losses)] if losses else []
    return " | ".join([*parts, *(["idle " + ", ".join(idle)] if idle else [])])


def is_control(metrics: Mapping[str, object]) -> bool:
    """Whether a step is one of a control run."""
    return "updates" in metrics


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float)
