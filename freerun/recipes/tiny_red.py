"""RED-Drop on two-digit addition, up to one step off-policy: failures are dropped until they are no more than successes."""

from dataclasses import replace

from freerun.algorithms.language import red
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=red.Config(),
    )
