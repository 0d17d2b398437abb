"""Supervised fine-tuning as a run of its own: two-digit addition from worked solutions; only evaluations generate."""

from dataclasses import replace

from freerun.algorithms.language import sft
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig
from freerun.tasks import examples


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    return replace(
        base,
        algorithm=sft.Config(),
        offline=examples.Solutions(),
        warm_start=None,
        control=replace(base.control, steps=250, groups=128, group_size=1, stream=128, eval_every=50),
        trainer=replace(base.trainer, lr=2e-3, schedule="linear", schedule_steps=250),
    )
