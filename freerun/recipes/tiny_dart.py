"""DART's loss on two-digit addition: the four fifths of each group of which the policy was least sure, near the warm start."""

from dataclasses import replace

from freerun.algorithms.language import dart
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=dart.Config(), trainer=replace(base.trainer, minibatches=2))
