"""Kimi's OPMD on two-digit addition: four updates a step, pulled towards the policy that sampled by the squared log-ratio."""

from dataclasses import replace

from freerun.algorithms.language import opmd
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=opmd.Config(),
        trainer=replace(base.trainer, minibatches=4),
    )
