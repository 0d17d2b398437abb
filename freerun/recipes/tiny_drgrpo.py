"""Dr.GRPO on two-digit addition: every token of every response weighs the same, and so does every prompt."""

from dataclasses import replace

from freerun.algorithms.language import drgrpo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(base, algorithm=drgrpo.Config(length=base.sampling.max_tokens))
