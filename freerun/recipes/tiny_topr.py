"""TOPR on two-digit addition, up to two steps off-policy: wrong answers count -1, tapered by how likely they still are."""

from dataclasses import replace

from freerun.algorithms.language import topr
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        # The verifier says 0 and 1.
        algorithm=topr.Config(rewards="zero_one"),
        control=replace(base.control, max_lag=2),
    )
