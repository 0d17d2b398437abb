"""PPO with a critic of its own on two-digit addition: two passes over each batch, in two minibatches.

The critic starts as a copy of the warm-started policy and learns ten times as fast, which costs a second forward and backward
pass: about twice the time of `tiny-addition`.
"""

from dataclasses import replace

from freerun.algorithms.language import ppo
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=ppo.Config(),
        trainer=replace(base.trainer, minibatches=2, epochs=2, critic_lr_share=10.0),
    )
