"""CHORD on two-digit addition: a fifth of every step are demonstrations, and they count where the policy is undecided.

As `tiny-addition`, with 32 correct answers beside 128 responses of the policy in each step. In the paper's terms this is
CHORD-phi with a constant share of 0.1; CHORD-mu is `--algorithm.weight none --algorithm.peak 0.9 --algorithm.valley 0.05
--algorithm.decay 40`.
"""

from dataclasses import replace

from freerun.algorithms.language import chord
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig
from freerun.tasks import examples


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=chord.Config(), experts=examples.Solutions(), control=replace(base.control, experts=32))
