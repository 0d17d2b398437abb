"""AsymRE on two-digit addition, up to two steps off-policy: nothing but a baseline a little below the mean reward."""

from dataclasses import replace

from freerun.algorithms.language import asymre
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=asymre.Config(),
        control=replace(base.control, max_lag=2),
    )
