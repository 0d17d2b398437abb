"""TD3: a deterministic actor-critic with twin critics, smoothed targets, and an actor that is updated less often.

Paper       Addressing Function Approximation Error in Actor-Critic Methods (arXiv 1802.09477).
Estimator   the deterministic policy gradient through the first critic.
Equation    critic: sum_i (Q_i(s, a) - y)^2,   y = r + discount min_i Q'_i(s', a')
            a' = clip(pi'(s') + clip(N(0, noise), -bound, bound), -1, 1)
            actor:  -Q_1(s, pi(s))
Assumption  none on who made the data; actions that the data lacks are valued by extrapolation, so use it with actors.
Degenerate  `actor_every` 1, one critic and no noise are DDPG with a target actor.
State       none.

Shapes: B rows, M critics, A action dimensions.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_with_noise, check
from freerun.networks import Body, Deterministic, Ensemble
from freerun.ops import values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the targets towards their networks."""
    actor_lr: float = 3e-4
    """Learning rate of the actor."""
    critic_lr: float = 3e-4
    """Learning rate of the critics."""
    actor_every: int = 2
    """Updates of the critics per update of the actor and the targets."""
    explore: float = 0.1
    """Standard deviation of the noise with which actors explore."""
    noise: float = 0.2
    """Standard deviation of the noise on target actions."""
    bound: float = 0.5
    """Bound of that noise."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""
    members: int = 2
    """Number of critics."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"explore, noise and bound >= 0": min(self.explore, self.noise, self.bound) >= 0}
        check(self, rules | {"actor_every, members >= 1": min(self.actor_every, self.members) >= 1})

    def build(self) -> ControlAlgorithm:
        body, every = Body(hidden=self.hidden), self.actor_every
        return ControlAlgorithm(
            name="td3",
            networks={"actor": Deterministic(body=body), "critic": Ensemble(members=self.members, body=body)},
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.critic_lr),
                Term(name="actor", loss=actor_loss, trains=("actor",), lr=self.actor_lr, every=every),
            ),
            act=act_with_noise("actor", self.explore),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=tuple(
                Target(online=name, target=f"{name}_target", rate=self.rate, every=every) for name in ("actor", "critic")
            ),
            gamma=self.gamma,
            actions="continuous",
        )


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        action_BA = networks["actor_target"](batch["next_obs"])
        action_BA = values.smoothed(action_BA, config.noise, config.bound, generator)
        value_B = networks["critic_target"](batch["next_obs"], action_BA).amin(0)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    return Loss(-networks["critic"](batch["obs"], networks["actor"](batch["obs"]))[0])
