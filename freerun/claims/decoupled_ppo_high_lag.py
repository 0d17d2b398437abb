"""Decoupled PPO against PPO clipped around the sampler, on a transformer at lag 16."""

from freerun.algorithms.language import decoupled_ppo, grpo
from freerun.claims import tiny
from freerun.claims.base import Claim, Expectation
from freerun.ops.reduce import Reduction

PPO = grpo.Config(reduction=Reduction.TOKEN_MEAN)
FOUR = {"minibatches": 4, "lr": 1.5e-4}
"""The paper's four minibatches a batch, at half the job's learning rate: twice as far per batch as one update of it."""


def claim() -> Claim:
    return Claim(
        sentence=(
            "When every token is 16 updates old, decoupled PPO learns more than PPO whose ratio is clipped around the policy "
            "that sampled."
        ),
        paper="AReaL (arXiv 2505.24298)",
        method=decoupled_ppo,
        arms={
            "decoupled": lambda seed: tiny.train(decoupled_ppo.Config(), seed=seed, lag=16, trainer=FOUR),
            "clip around sampler": lambda seed: tiny.train(PPO, seed=seed, lag=16, trainer=FOUR),
        },
        metric="accuracy",
        expected=(Expectation(better="decoupled", worse="clip around sampler"),),
        minutes=3.0,
    )
