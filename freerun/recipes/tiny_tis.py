"""TIS on two-digit addition: the generator computes in bfloat16, the trainer in float32, and a truncated weight corrects."""

from dataclasses import replace

from freerun.algorithms.language import tis
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=tis.Config(),
        generator=replace(base.generator, dtype="bfloat16"),
        trainer=replace(base.trainer, dtype="float32", minibatches=2),
    )
