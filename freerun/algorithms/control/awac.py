"""AWAC: a critic of the policy by bootstrapping, and a policy that imitates actions in proportion to their advantage.

Paper       AWAC: Accelerating Online Reinforcement Learning with Offline Datasets (arXiv 2006.09359).
Estimator   advantage-weighted log-likelihood of actions that somebody played; none of the policy's own is reinforced.
Equation    actor:  -w log pi(a|s),   w = min(exp(A / temperature), cap),   A = min_i Q_i(s, a) - min_i Q_i(s, a'),   a' ~ pi(s)
            critic: sum_i (Q_i(s, a) - y)^2,   y = r + discount min_i Q'_i(s', a''),   a'' ~ pi(s')
Assumption  the weights keep the policy near the data, so that the critic is asked about little that it has not seen; with
            actors, new data joins the same union, and nothing changes at the switch.
Degenerate  an infinite temperature is behaviour cloning beside a critic that nobody asks.
Named       `weights`: "capped" (default), each row by itself, as in CORL; "softmax" over the batch times its size, as in the
            authors' code: then a batch of bad actions is imitated as much as one of good ones.
            The value of a state is that of one sampled action. Gaussian with one standard deviation per dimension and a mean
            bounded by tanh; its samples are clipped before they are valued.
State       none.

Shapes: B rows, M critics.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy
from freerun.ops import values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    temperature: float = 1.0 / 3.0
    """What advantages are divided by: the smaller, the more only the best actions count."""
    weights: Literal["capped", "softmax"] = "capped"
    """How advantages become weights."""
    cap: float = 100.0
    """Largest weight, where they are capped."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    lr: float = 3e-4
    """Learning rate of both networks."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"temperature, cap > 0": min(self.temperature, self.cap) > 0}
        check(self, rules)

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        return ControlAlgorithm(
            name="awac",
            networks={
                "actor": Policy(body=body, squash=False, tanh_mean=True, state_std=False),
                "critic": Ensemble(members=2, body=body),
            },
            terms=(
                Term(name="critic", loss=critic_loss, trains=("critic",), lr=self.lr),
                Term(name="actor", loss=partial(actor_loss, config=self), trains=("actor",), lr=self.lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
        )


def value_of(networks: Networks, critic: str, obs_B: Tensor, generator: Generator) -> Tensor:
    """The least value of an action that the policy draws."""
    action_BA, _ = networks["actor"](obs_B).sample(generator)
    value_B: Tensor = networks[critic](obs_B, action_BA.clamp(-1.0, 1.0)).amin(0)
    return value_B


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    with torch.no_grad():
        value_B = value_of(networks, "critic_target", batch["next_obs"], generator)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B, action_B = batch["obs"], batch["action"]
    with torch.no_grad():
        advantage_B = networks["critic"](obs_B, action_B).amin(0) - value_of(networks, "critic", obs_B, generator)
        if config.weights == "capped":
            weight_B = values.exp_weight(advantage_B, 1.0 / config.temperature, config.cap)
        else:
            weight_B = len(advantage_B) * (advantage_B / config.temperature).softmax(0)
    policy = networks["actor"](obs_B)
    return Loss(-weight_B * policy.log_prob(action_B), {"weight": weight_B, "entropy": policy.entropy()})
