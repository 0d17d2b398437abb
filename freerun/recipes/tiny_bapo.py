"""BAPO on two-digit addition: four updates a step, each with clip bounds of its own that give right answers their share."""

from dataclasses import replace

from freerun.algorithms.language import bapo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=bapo.Config(),
        trainer=replace(base.trainer, minibatches=4),
    )
