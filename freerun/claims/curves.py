"""Curves as results keep them: short, and honest about steps that measured nothing."""

from collections.abc import Sequence

POINTS = 20
"""Points of a curve in a result: each is the mean of a stretch of steps."""


def mean(values: Sequence[float]) -> float | None:
    """The mean of the values that are numbers; None if none is. A step in which every group is flat computes nothing."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None


def last_tenth(values: Sequence[float]) -> float | None:
    """The mean of the last tenth of a curve."""
    return mean(values[-max(1, len(values) // 10) :])


def thinned(values: Sequence[float]) -> list[float | None]:
    """`values` as at most `POINTS` means of stretches of equal length, to four digits."""
    size = max(1, -(-len(values) // POINTS))
    points = [mean(values[i : i + size]) for i in range(0, len(values), size)]
    return [None if point is None else float(f"{point:.4g}") for point in points]
