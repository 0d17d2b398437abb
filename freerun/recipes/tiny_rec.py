"""REC on two-digit addition, up to four steps off-policy: no importance weight, and the paper's wide one-sided gate."""

from dataclasses import replace

from freerun.algorithms.language import rec
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=rec.NAMED["REC-OneSide-NoIS wide"],
        control=replace(base.control, max_lag=4),
    )
