"""IcePop on two-digit addition: the generator computes in bfloat16, and tokens on which the trainer disagrees are left out."""

from dataclasses import replace

from freerun.algorithms.language import icepop
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=icepop.Config(),
        generator=replace(base.generator, dtype="bfloat16"),
        trainer=replace(base.trainer, dtype="float32", minibatches=2),
    )
