"""REINFORCE on two-digit addition, on fresh data only: nothing corrects for age, so each step waits for its own policy."""

from dataclasses import replace

from freerun.algorithms.language import reinforce
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=reinforce.Config(), control=replace(base.control, max_lag=0, window=1))
