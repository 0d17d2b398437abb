"""PPO's clip is what lets several epochs use the same rollouts."""

from dataclasses import replace

from freerun.algorithms.control import ppo
from freerun.claims import episodes
from freerun.claims.base import Arm, Claim, Expectation
from freerun.recipes import cartpole_ppo
from freerun.store.phases import Phase

NEVER = 1e9
"""A clip that is never reached."""


def arm(clip: float, epochs: int) -> Arm:
    """30 steps of 1024 transitions, half of the recipe's: what is compared is how much is made of few rollouts."""
    run = cartpole_ppo.recipe()
    algorithm = ppo.Config(lr=1e-3, value_lr=1e-3, entropy=0.01, clip=clip)
    control = replace(run.control, phases=(Phase(env_steps=30 * 1024),))
    return episodes.arm(
        replace(run, algorithm=algorithm, control=control, trainer=replace(run.trainer, epochs=epochs)),
        also=("kl/behaviour", "ratio/clipped"),
    )


def claim() -> Claim:
    return Claim(
        sentence=(
            "On CartPole, ten epochs over each rollout learn faster with the clip than without, and faster than one "
            "epoch: return, mean over looks during 30 steps of 1024 transitions."
        ),
        paper="PPO (arXiv 1707.06347)",
        method=ppo,
        arms={"ten epochs": arm(0.2, 10), "ten epochs, no clip": arm(NEVER, 10), "one epoch": arm(0.2, 1)},
        metric="mean_return",
        expected=(
            Expectation(better="ten epochs", worse="ten epochs, no clip", margin=20.0),
            Expectation(better="ten epochs", worse="one epoch", margin=20.0),
        ),
        seeds=12,
        minutes=6.0,
        tried="With five seeds it was unclear: so twelve.",
    )
