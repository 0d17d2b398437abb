"""IQL: values of a data set's better actions by expectile regression, and a policy that imitates in proportion to them.

Paper       Offline Reinforcement Learning with Implicit Q-Learning (arXiv 2110.06169).
Estimator   advantage-weighted log-likelihood; no action outside the data is ever valued.
Equation    value:  |e - 1(u < 0)| u^2,   u = min_i Q'_i(s, a) - V(s)
            actor:  -min(exp(b u), cap) log pi(a|s)
            critic: sum_i (Q_i(s, a) - y)^2,   y = r + discount V(s')
Assumption  the data is the behaviour of one policy or of a mixture; with actors, new data joins the same union.
Degenerate  e = 1/2 is the value of the behaviour policy and one step of improvement; b = 0 is behaviour cloning.
Named       all three losses see the networks as they are at the start of the update (so does CORL; the authors' code updates V
            first). Gaussian with one standard deviation per dimension and a mean bounded by tanh.
State       none.

Shapes: B rows, M critics.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy
from freerun.ops import values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    expectile: float = 0.7
    """Which expectile of the values of the data's actions V is (AntMaze: 0.9)."""
    inverse_temperature: float = 3.0
    """How sharply the policy prefers better actions (AntMaze: 10)."""
    cap: float = 100.0
    """Largest weight of an action."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1, "cap > 0": self.cap > 0}
        check(
            self,
            rules | {"0 < expectile < 1": 0 < self.expectile < 1, "inverse_temperature >= 0": self.inverse_temperature >= 0},
        )

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        return ControlAlgorithm(
            name="iql",
            networks={
                "actor": Policy(body=body, squash=False, tanh_mean=True, state_std=False),
                "value": Ensemble(reads=("obs",), body=body),
                "critic": Ensemble(members=2, body=body),
            },
            terms=(Term(name="iql", loss=partial(loss, config=self), trains=("value", "critic", "actor"), lr=self.lr),),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
        )


def loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """The three losses have no parameter in common, so one gradient serves them all."""
    obs_B, action_B = batch["obs"], batch["action"]
    value_B = networks["value"](obs_B)[0]
    with torch.no_grad():
        data_B = networks["critic_target"](obs_B, action_B).amin(0)
        weight_B = values.exp_weight(data_B - value_B, config.inverse_temperature, config.cap)
        target_B = values.td_target(batch["reward"], batch["discount"], networks["value"](batch["next_obs"])[0])
    value_loss_B = values.expectile(data_B - value_B, config.expectile)
    actor_loss_B = -weight_B * networks["actor"](obs_B).log_prob(action_B)
    q_MB = networks["critic"](obs_B, action_B)
    total_B = value_loss_B + actor_loss_B + values.squared_errors(q_MB, target_B)
    watch = {"value": value_B, "q": q_MB, "weight": weight_B, "value_loss": value_loss_B, "actor_loss": actor_loss_B}
    return Loss(total_B, watch, (q_MB - target_B).abs().amax(0))
