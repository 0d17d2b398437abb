"""DPO on two-digit addition: from a fixed set of right and wrong answers, with nothing generated but evaluations.

Each pair is the right answer to a sum and the right answer to another one. The warm start gives the reference policy.
"""

from dataclasses import replace

from freerun.algorithms.language import dpo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig
from freerun.tasks import examples


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=dpo.Config(),
        offline=examples.Comparisons(),
        control=replace(base.control, groups=64, group_size=2, stream=64),
    )
