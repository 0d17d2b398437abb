"""RLOO on two-digit addition: the least that works, a response's reward against the mean of its siblings'."""

from dataclasses import replace

from freerun.algorithms.language import rloo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    return replace(tiny_addition.recipe(), algorithm=rloo.Config())
