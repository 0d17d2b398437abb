"""GSPO on two-digit addition: four minibatches a step, each response clipped as a whole."""

from dataclasses import replace

from freerun.algorithms.language import gspo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=gspo.Config(), trainer=replace(base.trainer, minibatches=4))
