"""TD3+BC: TD3 on a data set, its actor held near the data's actions.

Paper       A Minimalist Approach to Offline Reinforcement Learning (arXiv 2106.06860).
Estimator   the deterministic policy gradient through the first critic, scaled to the size of its values, and a squared error.
Equation    critic: as in td3
            actor:  -lambda Q_1(s, pi(s)) + |pi(s) - a|^2,   lambda = alpha / mean |Q_1(s, pi(s))|, no gradient
Assumption  the data has actions worth staying near; observations are normalised (the trainer's `observations = data`).
Degenerate  alpha = 0 is behaviour cloning of the mean action; a large one is td3.
Named       the squared error is the mean over action dimensions, as in the authors' code.
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
    alpha: float = 2.5
    """Weight of the critic against the data's actions."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the targets towards their networks."""
    lr: float = 3e-4
    """Learning rate of all networks."""
    actor_every: int = 2
    """Updates of the critics per update of the actor and the targets."""
    explore: float = 0.1
    """Standard deviation of the noise with which actors explore, in a phase that has actors."""
    noise: float = 0.2
    """Standard deviation of the noise on target actions."""
    bound: float = 0.5
    """Bound of that noise."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"alpha, explore, noise and bound >= 0": min(self.alpha, self.explore, self.noise, self.bound) >= 0}
        check(self, rules | {"actor_every >= 1": self.actor_every >= 1})

    def build(self) -> ControlAlgorithm:
        body, every = Body(hidden=self.hidden), self.actor_every
        actor = partial(actor_loss, config=self)
        return ControlAlgorithm(
            name="td3_bc",
            networks={"actor": Deterministic(body=body), "critic": Ensemble(members=2, body=body)},
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.lr),
                Term(name="actor", loss=actor, trains=("actor",), lr=self.lr, every=every),
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


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    action_BA = networks["actor"](batch["obs"])
    q_B = networks["critic"](batch["obs"], action_BA)[0]
    scale = config.alpha / (q_B.detach().abs().mean() + 1e-8)
    error_B = (action_BA - batch["action"]).square().mean(-1)
    return Loss(error_B - scale * q_B, {"bc": error_B})
