"""Small numbers for people: intervals, times, quantities, and curves made of characters."""

import itertools
import math
from collections.abc import Mapping, Sequence

from freerun.metrics import EvalRecord

BLOCKS = "▁▂▃▄▅▆▇█"
Z95 = 1.959963984540054  # two-sided 95% point of the normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% score interval of a share of `count` independent trials (Wilson 1927, eq. 2 of Newcombe 1998).

    For accuracies with values between 0 and 1 per problem it is wider than needed, since their variance is at most that of a
    yes-or-no outcome with the same mean.
    """
    if count == 0:
        return 0.0, 1.0
    shrink = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / shrink
    half = Z95 / shrink * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def gain_interval(before: float, num_before: int, after: float, num_after: int) -> tuple[float, float]:
    """95% interval of `after - before` for independent answers, from the two Wilson intervals (Newcombe 1998, method 10)."""
    (low_b, high_b), (low_a, high_a) = wilson(before, num_before), wilson(after, num_after)
    gain = after - before
    return (gain - math.hypot(after - low_a, high_b - before), gain + math.hypot(high_a - after, before - low_b))


def headline(evaluations: Sequence[EvalRecord]) -> list[EvalRecord]:
    """The evaluations of the split with the most problems, which is the one that "before and after" speaks of."""
    split = max(evaluations, key=lambda e: e.count).split if evaluations else ""
    return [e for e in evaluations if e.split == split]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def duration(seconds: float) -> str:
    """`0.4s`, `12s`, `3m 05s`, `2h 07m`; a dash for what is not known."""
    if math.isnan(seconds):
        return "–"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def quantity(value: float) -> str:
    """About three digits, plainly where that is short: `0.0042`, `1.5e-06`, `412`, `12,300`, `1.2M`; a dash for no number."""
    size = abs(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e")
    if size < 100:
        return f"{value:.3g}"
    if size < 1e5:
        return f"{value:,.0f}"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.0f}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks, at most `width`; longer series are averaged into `width` bins. Non-finite values are `?`."""
    bins = binned(values, width)
    finite = [v for v in bins if math.isfinite(v)]
    if not finite:
        return "?" * len(bins)
    low, span = min(finite), max(finite) - min(finite)

    def block(value: float) -> str:
        if not math.isfinite(value):
            return "?"
        return BLOCKS[min(7, int(8 * (value - low) / span))] if span else BLOCKS[3]

    return "".join(map(block, bins))


def binned(values: Sequence[float], width: int) -> list[float]:
    """`values` themselves if there are at most `width`, else the means of `width` runs of them of nearly equal length."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def bar(share: float, width: int) -> str:
    """A horizontal bar of `share` of `width` cells, to an eighth of a cell."""
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def shares(counts: Mapping[int, float]) -> dict[int, float]:
    """A histogram as shares, in order of its buckets."""
    total = sum(counts.values())
    return {k: counts[k] / total for k in sorted(counts)} if total else {}
