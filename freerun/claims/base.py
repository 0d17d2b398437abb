"""A claim: one sentence of a paper, in our words, as an experiment that can come out against it.

A claim is one file in this folder (or any Python file) with a function `claim() -> Claim`; `freerun claims NAME` finds it by
its file name, and nothing is registered. Its arms are functions of the seed that return numbers; what is expected says which
arm is better than which, by how much at least. Intervals decide (see `verdict.py`), nobody does by hand. A claim that does not
hold is a result like any other, and `tried` says what was tried before it was left at that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from freerun import claims, discovery
from freerun.claims.verdict import Interval, Verdict, interval, judge
from freerun.errors import ConfigError

MIN_SEEDS = 3
"""Fewer say nothing about the spread."""

Arm = Callable[[int], Mapping[str, Any]]
"""The numbers of one run, from its seed: the claim's metric, and whatever else is worth keeping (JSON-able)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """That the arm `better` is above the arm `worse` by more than `margin`, on average over seeds."""

    better: str
    """The arm that should do better."""
    worse: str
    """The arm that it is compared with."""
    margin: float = 0.0
    """By how much at least. A negative margin says: not worse by that much."""
    metric: str = ""
    """The number to compare, if it is not the claim's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An experiment and what a paper leads one to expect of it. Raises `ConfigError` for one that cannot be decided."""

    sentence: str
    """What is claimed, in our words, as precisely as the experiment tests it."""
    paper: str
    """Who claims it."""
    method: ModuleType
    """The algorithm file that it is about."""
    arms: Mapping[str, Arm]
    """What is run, by name."""
    metric: str
    """The number that is compared."""
    better: Literal["higher", "lower"] = "higher"
    """Which way is better."""
    expected: tuple[Expectation, ...]
    """What has to come out for the claim to hold: all of it."""
    seeds: int = MIN_SEEDS
    """Seeds 0 to so many are run."""
    quick: bool = False
    """Whether it is cheap enough for every change of the code."""
    minutes: float
    """About how long it takes on one core."""
    tried: str = ""
    """What was tried besides, above all where the claim does not hold."""

    def __post_init__(self) -> None:
        named = {arm for one in self.expected for arm in (one.better, one.worse)}
        rules = {
            f"at least {MIN_SEEDS} seeds": self.seeds >= MIN_SEEDS,
            "at least one expectation": bool(self.expected),
            "expectations about arms that there are": named <= set(self.arms),
            "better is higher or lower": self.better in ("higher", "lower"),
            "minutes > 0": self.minutes > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(
                    "this claim cannot be decided",
                    given=f"seeds {self.seeds}, arms {sorted(self.arms)}, compared {sorted(named)}, better {self.better}",
                    expected=rule,
                    todo=f"correct the claim: {self.sentence[:80]}",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What became of one expectation: the paired differences, seed by seed, and what they say."""

    expectation: Expectation
    differences: tuple[float, ...]
    interval: Interval
    verdict: Verdict


def compare(claim: Claim, one: Expectation, runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Compared:
    """Judge an expectation by `runs` (arm, then seed, then numbers)."""
    metric, sign = one.metric or claim.metric, 1.0 if claim.better == "higher" else -1.0
    pairs = [(runs[one.better][seed][metric], runs[one.worse][seed][metric]) for seed in sorted(runs[one.better])]
    differences = tuple(sign * (left - right) for left, right in pairs)
    spread = interval(differences)
    return Compared(expectation=one, differences=differences, interval=spread, verdict=judge(spread, one.margin))


def check_numbers(claim: Claim, name: str, arm: str, numbers: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if an arm did not return a finite number for every metric that is compared."""
    for metric in {claim.metric, *(one.metric or claim.metric for one in claim.expected)}:
        value = numbers.get(metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(
                f"arm '{arm}' of claim '{name}' did not give its metric",
                given=f"{metric}: {value!r} among {', '.join(sorted(numbers))}",
                expected="a finite number",
                todo="correct the arm",
            )


def names() -> list[str]:
    """Names of the claims that ship, sorted."""
    return discovery.names(claims, "claim")


def load(name: str) -> ModuleType:
    """The module of a claim that ships (`aipo-static-bandit`) or of a Python file. Raises `ConfigError`."""
    example = "freerun/claims/aipo_static_bandit.py"
    return discovery.load(claims, "claim", name, listing="freerun claims --list", example=example)
