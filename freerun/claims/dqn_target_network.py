"""DQN's target network keeps what is learned from chasing itself."""

from dataclasses import replace

from freerun.algorithms.control import dqn
from freerun.claims import episodes
from freerun.claims.base import Arm, Claim, Expectation
from freerun.recipes import cartpole_dqn


def arm(target_every: int, *, double: bool = True) -> Arm:
    algorithm = dqn.Config(lr=1e-3, target_every=target_every, double=double, explore_steps=10_000)
    return episodes.arm(replace(cartpole_dqn.recipe(), algorithm=algorithm), also=("algorithm/q",))


def claim() -> Claim:
    return Claim(
        sentence=(
            "On CartPole, DQN whose targets come from a copy of the network that is renewed every 100 updates reaches a higher "
            "return than one whose targets come from the network itself."
        ),
        paper="DQN (Mnih et al. 2015, Nature 518)",
        method=dqn,
        arms={
            "target network": arm(100),
            "no target network": arm(1),
            "one network chooses and values": arm(100, double=False),
        },
        metric="mean_return",
        expected=(Expectation(better="target network", worse="no target network"),),
        seeds=5,
        minutes=12.0,
    )
