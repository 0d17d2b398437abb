"""CartPole for claims: the environment, and episodes of random actions in it, which are useless data and reference returns."""

from dataclasses import dataclass

from freerun.actors.collector import Collector
from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import ppo
from freerun.datasets.base import Episodes
from freerun.tasks.grades import episodes_of
from freerun.transitions import Order
from freerun.weights import inprocess

CARTPOLE = GymConfig(id="CartPole-v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPlay:
    """Episodes of random actions on CartPole, with the returns of random and of perfect play as references."""

    rows: int = 5_000
    """Transitions, about."""

    def build(self) -> Episodes:
        actor = Collector(CARTPOLE, ActorConfig(envs=4), ppo.Config(), inprocess.subscriber())
        try:
            chunk = actor.collect(Order(item=0, steps=self.rows // 4, mode="random"), None).chunk
        finally:
            actor.close()
        return episodes_of("cartpole-random", [chunk], {"env": CARTPOLE.id, "scores": [22.0, 500.0]})
