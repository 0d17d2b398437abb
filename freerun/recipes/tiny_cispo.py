"""CISPO on two-digit addition, two steps stale: weights up to five, and no token without a gradient."""

from dataclasses import replace

from freerun.algorithms.language import cispo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=cispo.Config(clip_high=4.0), control=replace(base.control, max_lag=2))
