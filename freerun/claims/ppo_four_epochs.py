"""As ppo-epochs, with a quarter of the updates: four epochs of the whole batch."""

from freerun.algorithms.language import ppo, reinforce
from freerun.claims.base import Claim, Expectation
from freerun.claims.ppo_epochs import arm

FOUR = {"epochs": 4, "critic_lr_share": 10.0}


def claim() -> Claim:
    return Claim(
        sentence=(
            "Four updates on each batch improve a policy whose ratios are clipped, and more than one update does; without "
            "the clip, or as plain REINFORCE, the same four improve it less."
        ),
        paper="PPO (arXiv 1707.06347)",
        method=ppo,
        arms={
            "clipped": arm(ppo.Config(), **FOUR),
            "not clipped": arm(ppo.Config(clip_low=1.0, clip_high=1e6), **FOUR),
            "reinforce": arm(reinforce.Config(), **FOUR),
            "clipped, one update": arm(ppo.Config(), critic_lr_share=10.0),
        },
        metric="accuracy",
        expected=(
            Expectation(better="clipped", worse="not clipped", margin=0.1),
            Expectation(better="clipped", worse="reinforce", margin=0.1),
            Expectation(better="clipped", worse="clipped, one update"),
        ),
        minutes=5.0,
        tried="Written when sixteen updates at this learning rate had turned out too many even for PPO, see ppo-epochs.",
    )
