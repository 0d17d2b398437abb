"""ReMix on two-digit addition: 16 fresh and 11 replayed groups a step, passed over twice, then on-policy from step 30 on."""

from dataclasses import replace

from freerun.algorithms.language import remix
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=remix.Config(reincarnate=30),
        control=replace(base.control, max_lag=0, window=1, replay=11, replay_age=2),
        trainer=replace(base.trainer, epochs=2),
    )
