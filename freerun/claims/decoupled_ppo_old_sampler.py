"""A clip around an old sampler stops learning; the same clip around the start of the update does not."""

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import decoupled_ppo, grpo
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.reduce import Reduction

PPO = grpo.Config(normalise="none", reduction=Reduction.TOKEN_MEAN)
DECOUPLED = decoupled_ppo.Config(normalise="none")


def arm(algorithm: AlgorithmConfig, refresh: int) -> Arm:
    setting = tabular.Setting(steps=200, refresh=refresh, minibatches=4, lr=42.0)
    return lambda seed: tabular.train(algorithm, tabular.chain(), setting, seed=seed).numbers()


def claim() -> Claim:
    return Claim(
        sentence=(
            "With a sampler that is 100 updates old, PPO's clip around the sampler stops learning where the clip around the "
            "policy at the start of the update, with an importance weight for the rest, goes on; on fresh data the two learn "
            "alike."
        ),
        paper="AReaL (arXiv 2505.24298)",
        method=decoupled_ppo,
        arms={
            "decoupled, old": arm(DECOUPLED, 100),
            "clip around sampler, old": arm(PPO, 100),
            "decoupled, fresh": arm(DECOUPLED, 1),
            "clip around sampler, fresh": arm(PPO, 1),
        },
        metric="value",
        expected=(
            Expectation(better="decoupled, old", worse="clip around sampler, old", margin=0.2),
            Expectation(better="decoupled, fresh", worse="clip around sampler, fresh", margin=-0.02),
        ),
        quick=True,
        minutes=0.6,
        tried=(
            "The sequence task of tables, four minibatches per batch as in the paper; the step is a quarter of the task's, so "
            "that a batch moves the policy as far as one update does."
        ),
    )
