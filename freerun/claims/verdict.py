"""From numbers per seed to a verdict: the paired difference of two arms, its 95% interval, and what that says about a margin.

Two arms with the same seed share start, prompts and random numbers, so their difference says more than either's spread. The
interval is Student's, mean +- t * s / sqrt(n), which takes differences for draws from a normal distribution. With three seeds
`t` is 4.3: small samples have to be clear.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

QUANTILES = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)
"""The 97.5% quantile of Student's t for 1 to 10 degrees of freedom."""


class Verdict(enum.StrEnum):
    """What the interval of a difference says about the claim that it is above a margin."""

    HOLDS = "holds"
    """All of the interval is above the margin."""
    FAILS = "does not hold"
    """None of it is."""
    UNCLEAR = "unclear"
    """The margin lies inside: more seeds could decide, or there is nothing to decide."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float


def quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t, to four digits."""
    if degrees <= len(QUANTILES):
        return QUANTILES[degrees - 1]
    # Cornish-Fisher expansion around the normal quantile (Abramowitz and Stegun, 26.7.5).
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% interval of at least two values."""
    centre = fmean(values)
    reach = quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(centre, centre - reach, centre + reach)


def judge(difference: Interval, margin: float) -> Verdict:
    """Whether a difference is above `margin`."""
    if difference.low > margin:
        return Verdict.HOLDS
    return Verdict.FAILS if difference.high <= margin else Verdict.UNCLEAR


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several statements that are all claimed: one that fails refutes the claim, and one that is unclear leaves it open."""
    return next((v for v in (Verdict.FAILS, Verdict.UNCLEAR) if v in verdicts), Verdict.HOLDS)
