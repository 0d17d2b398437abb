"""Decoupled PPO on two-digit addition, two steps stale: a clip around the start of the update, and a weight for the lag.

Four minibatches a batch, as in the paper; with one, the clip has nothing to do. `--algorithm.proximal interpolated` saves the
forward pass that the start of the update costs.
"""

from dataclasses import replace

from freerun.algorithms.language import decoupled_ppo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=decoupled_ppo.Config(),
        control=replace(base.control, max_lag=2),
        trainer=replace(base.trainer, minibatches=4),
    )
