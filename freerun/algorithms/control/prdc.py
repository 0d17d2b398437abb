"""PRDC: TD3 on a data set, its actor held near the recorded action of whoever stood and acted most alike.

Paper       Policy Regularization with Dataset Constraint for Offline Reinforcement Learning (arXiv 2306.06569).
Estimator   the deterministic policy gradient through the first critic, scaled to the size of its values, and a squared error.
Equation    critic: as in td3
            actor:  -lambda Q_1(s, pi(s)) + |pi(s) - a~|^2,   lambda = alpha / mean |Q_1(s, pi(s))|, no gradient
            a~ = the action of the recorded step (s_i, a_i) that is nearest to (obs_scale s, pi(s)) among (obs_scale s_i, a_i)
Assumption  near states allow the same actions, so a good one may be borrowed from a neighbour where the data's own is bad;
            observations are normalised (the trainer's `observations = data`).
Degenerate  an infinite obs_scale is td3_bc, for the nearest state is then the row's own; a large alpha is td3. With obs_scale 0
            any recorded action will do, wherever it was played.
Named       `obs_scale` (the paper's beta) is 2, as in the paper; the authors' code has 1 where nothing is said. The squared
            error is the mean over action dimensions, as in their code. One neighbour: their code takes the k-th alone.
State       none. The data set is a network, `data`, in which nothing is trained.

Shapes: B rows, M critics, A action dimensions.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_with_noise, check
from freerun.networks import Body, Deterministic, Ensemble, Neighbours
from freerun.ops import values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    obs_scale: float = 2.0
    """How much being in the same state counts beside acting alike."""
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
    source: str = "dataset"
    """The data set in which neighbours are looked for."""
    most: int = 100_000
    """Steps of it that are searched."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        numbers = (self.obs_scale, self.alpha, self.explore, self.noise, self.bound)
        rules |= {"obs_scale, alpha, explore, noise and bound >= 0": min(numbers) >= 0}
        check(self, rules | {"actor_every, most >= 1": min(self.actor_every, self.most) >= 1})

    def build(self) -> ControlAlgorithm:
        body, every = Body(hidden=self.hidden), self.actor_every
        critic, actor = partial(critic_loss, config=self), partial(actor_loss, config=self)
        return ControlAlgorithm(
            name="prdc",
            networks={
                "actor": Deterministic(body=body),
                "critic": Ensemble(members=2, body=body),
                "data": Neighbours(source=self.source, obs_scale=self.obs_scale, most=self.most),
            },
            terms=(
                Term(name="critic", loss=critic, trains=("critic",), lr=self.lr),
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
    error_B = (action_BA - networks["data"](batch["obs"], action_BA)).square().mean(-1)
    return Loss(error_B - scale * q_B, {"distance": error_B})
