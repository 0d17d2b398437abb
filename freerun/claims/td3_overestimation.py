"""TD3's second critic takes away most of what one critic promises too much."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from freerun import plainfiles
from freerun.actors.collector import Collector
from freerun.algorithms.control import td3
from freerun.claims import episodes
from freerun.claims.base import Arm, Claim, Expectation
from freerun.models import control as models
from freerun.ops.values import returns_to_go
from freerun.recipes import pendulum_td3
from freerun.recipes.control_base import ControlRun
from freerun.transitions import Order
from freerun.weights import inprocess

GAMMA = 0.95
"""So that what lies beyond the first half of an episode counts less than one percent in its first half."""
STEPS = 200
"""Of an episode."""


def promised_and_paid(config: ControlRun, checkpoint: Path) -> Mapping[str, Any]:
    """What the first critic says of the actor's own actions, and what they earn, mean over the first half of 16 episodes."""
    player = Collector(config.env, replace(config.actor, envs=16), config.algorithm, inprocess.subscriber(), seed=config.seed)
    algorithm = config.algorithm.build()
    networks = models.build(algorithm.networks, player.spaces, seed=config.seed)
    saved = plainfiles.load_values(checkpoint / "trainer", "trainer")["updater"]["networks"]
    for name, network in networks.items():
        network.load_state_dict(saved[name])
    player.policy["actor"].load_state_dict(saved["actor"])
    columns = player.collect(Order(item=0, steps=STEPS, mode="greedy"), None).chunk.columns
    player.close()
    with torch.no_grad():
        promised_TN = networks["critic"](columns["obs"], columns["action"])[0]
    paid_TN = torch.stack([returns_to_go(reward_T, GAMMA) for reward_T in columns["reward"].T], 1)
    half = slice(0, STEPS // 2)
    promised, paid = float(promised_TN[half].mean()), float(paid_TN[half].mean())
    return {"promised": promised, "paid": paid, "too_much": promised - paid}


def arm(members: int) -> Arm:
    algorithm = td3.Config(actor_lr=1e-3, critic_lr=1e-3, hidden=(64, 64), gamma=GAMMA, members=members)
    return episodes.arm(replace(pendulum_td3.recipe(), algorithm=algorithm), after=promised_and_paid)


def claim() -> Claim:
    return Claim(
        sentence=(
            "On Pendulum, a critic that learns from the smaller of two values promises less beyond what the policy then "
            "earns than one that learns from itself alone."
        ),
        paper="TD3 (arXiv 1802.09477)",
        method=td3,
        arms={"two critics": arm(2), "one critic": arm(1)},
        metric="too_much",
        better="lower",
        expected=(Expectation(better="two critics", worse="one critic"),),
        seeds=5,
        minutes=8.0,
    )
