"""MiniRL on a tiny mixture of experts: the trainer sends every token to the experts that the generator chose for it.

Two-digit addition; the generator computes in bfloat16, the trainer in float32, so that their routers disagree now and then.
"""

from dataclasses import replace

from freerun.algorithms.language import minirl
from freerun.models import tiny_moe
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        model=tiny_moe.Config(layers=3, width=64, experts=8, active=2, context=32, alphabet="0123456789+=-"),
        algorithm=minirl.Config(routing="rollout"),
        generator=replace(base.generator, dtype="bfloat16"),
        trainer=replace(base.trainer, dtype="float32", minibatches=2),
    )
