"""A-LoL on two-digit addition: offline RL from a data set in which half of the answers are wrong, without generating any.

A careless author writes the data. The policy is fine-tuned on all of it and becomes the reference; the reward to expect of it
on each prompt is fitted to the rewards of the data; then only the responses that do better are trained on. Generators answer
the held-out problems and nothing else.
"""

from dataclasses import replace

from freerun.algorithms.language import alol, sft
from freerun.recipes import tiny_addition
from freerun.recipes.base import ReferenceValueConfig, RunConfig, WarmStartConfig
from freerun.tasks import written


def recipe() -> RunConfig:
    base = tiny_addition.recipe()
    data = written.Noisy(alphabet="0123456789", noise=0.22, prompts=4096, samples=4)
    return replace(
        base,
        algorithm=alol.Config(),
        offline=data,
        warm_start=WarmStartConfig(algorithm=sft.Config(), examples=data, steps=250, batch=32, lr=2e-3),
        reference_value=ReferenceValueConfig(),
        control=replace(base.control, groups=64, group_size=1, stream=64, max_lag=0, window=1),
    )
