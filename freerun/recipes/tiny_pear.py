"""PEAR before RL on two-digit addition: a start from a careless author's answers, weighed by how the policy would go on.

As `tiny-addition`, but the demonstrations come from an author who slips at every twelfth character or so, and whose log-probs
are known. Answers have at most four tokens, so the token form is used: one block of four would weigh everything alike.
"""

from dataclasses import replace

from freerun.algorithms.language import pear
from freerun.recipes import tiny_addition
from freerun.recipes.base import RunConfig, WarmStartConfig
from freerun.tasks import written


def recipe() -> RunConfig:
    demonstrations = written.Noisy(alphabet="0123456789", noise=0.1, prompts=4096, samples=2)
    stage = WarmStartConfig(algorithm=pear.Config(form="token"), examples=demonstrations, steps=250, batch=64, lr=2e-3)
    return replace(tiny_addition.recipe(), warm_start=stage)
