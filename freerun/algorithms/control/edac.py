"""EDAC: SAC on a data set, kept from actions that the data lacks by the least of many critics whose slopes are made to differ.

Paper       Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble (arXiv 2110.01548).
Estimator   the pathwise gradient of the least of N critics, through actions of a squashed Gaussian.
Equation    critic: sum_i (Q_i(s, a) - y)^2 + diversity sum_{i != j} cos(dQ_i/da, dQ_j/da) / (N - 1)
            y = r + discount (min_i Q'_i(s', a') - alpha log pi(a'|s')),   a' ~ pi(s')
            actor and alpha: as in sac
Assumption  critics that started apart disagree where there is no data; alike slopes hide that, so they are punished.
Degenerate  diversity = 0 is SAC-N (the same paper); with two critics, SAC on data. With one action dimension a cosine is a
            sign, which has no slope but where a critic's is 0, and there one without end: the term is left out.
Named       `members` 10 and `diversity` 1 are those of HalfCheetah and Walker2d; Hopper has 50 critics. The sum of squared
            errors over critics stands beside the mean of cosines over rows, as in the authors' code and CORL.
State       none: the temperature is a network with one number.

Shapes: B rows, M critics, A action dimensions.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import ensembles, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    members: int = 10
    """Number of critics."""
    diversity: float = 1.0
    """How much alike slopes count beside the squared errors; 0 is SAC-N."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        check(self, rules | {"members >= 2": self.members >= 2, "diversity >= 0": self.diversity >= 0})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        return ControlAlgorithm(
            name="edac",
            networks={
                "actor": Policy(body=body),
                "critic": Ensemble(members=self.members, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.lr),
                Term(name="actor", loss=actor_loss, trains=("actor", "temperature"), lr=self.lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
        )


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B, action_BA = batch["obs"], batch["action"]
    with torch.no_grad():
        next_BA, logp_B = networks["actor"](batch["next_obs"]).sample(generator)
        value_B = networks["critic_target"](batch["next_obs"], next_BA).amin(0) - networks["temperature"]().exp() * logp_B
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    if not config.diversity or action_BA.shape[-1] == 1:
        q_MB = networks["critic"](obs_B, action_BA)
        return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))
    # Each critic has a copy of the actions, so that one gradient of the sum is the slope of each.
    action_MBA = action_BA.detach().expand(config.members, *action_BA.shape).clone().requires_grad_()
    q_MB = networks["critic"].apart(obs_B.expand(config.members, *obs_B.shape), action_MBA)
    (slope_MBA,) = torch.autograd.grad(q_MB.sum(), action_MBA, create_graph=True)
    likeness_B = ensembles.likeness(slope_MBA)
    loss_B = values.squared_errors(q_MB, target_B) + config.diversity * likeness_B
    return Loss(loss_B, {"q": q_MB, "likeness": likeness_B}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    """Actor and temperature in one gradient step: each part holds the other's number still."""
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, q_MB = networks["temperature"](), networks["critic"](batch["obs"], action_BA)
    loss_B = soft.actor_loss(logp_B, q_MB.amin(0), log_alpha.exp())
    loss_B = loss_B + soft.temperature_loss(log_alpha, logp_B, -action_BA.shape[-1])
    return Loss(loss_B, {"entropy": -logp_B, "alpha": log_alpha.exp(), "spread": q_MB.std(0)})
