"""REINFORCE++ on two-digit addition: one response to each of many prompts, compared over the whole step and not in groups."""

from dataclasses import replace

from freerun.algorithms.language import reinforce_pp
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    together = base.control.groups * base.control.group_size
    return replace(
        base,
        algorithm=reinforce_pp.Config(),
        control=replace(base.control, groups=together, group_size=1, stream=together),
    )
