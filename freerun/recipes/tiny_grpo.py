"""GRPO on two-digit addition, one step stale: two passes over each batch, which the clip holds near the policy that sampled."""

from dataclasses import replace

from freerun.algorithms.language import grpo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=grpo.Config(), trainer=replace(base.trainer, epochs=2))
