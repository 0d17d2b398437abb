"""DAPO on two-digit addition: dynamic sampling drops groups that teach nothing, and long answers lose a part of their reward.

A right answer has three or four tokens; six are the budget, and the last two of them cost half a point each.
"""

from dataclasses import replace

from freerun.algorithms.language import dapo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=dapo.Config(max_length=base.sampling.max_tokens, buffer=2),
        control=replace(base.control, skip_uniform=True),
    )
