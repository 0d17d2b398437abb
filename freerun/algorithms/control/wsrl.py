"""WSRL: values learned from data start an online learner that keeps no data, after a warm-up with the policy as it is.

Paper       Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data (arXiv 2412.07762).
Estimator   offline as calql or cql, online as for sac, with many critics, of which a target takes the least of a few.
Equation    critic: sum_i (Q_i(s, a) - y)^2 + conservatism weight max(log sum_a' exp Q^i(s, a') - Q_i(s, a), least)
            y = r + discount min_{i in C} Q'_i(s', a''),   C of `least_of` critics,   a'' ~ pi(s');   Q^i as in calql
            actor:  alpha log pi(a|s) - min_i Q_i(s, a),   a ~ pi with gradient
            alpha:  -log alpha (log pi(a|s) - |A|)
Assumption  three phases. Offline, with `conservatism` 1, from the data set. Warm-up: actors play the policy as it is, and
            nothing is learned (`utd` 0). Online, with `conservatism` 0, from what actors played and nothing else, with several
            updates per step, of which every so many-th trains the actor (`every` of the phase). Values of pessimistic critics
            are off where the policy goes now; its first steps let them be set right before it follows them.
Degenerate  without the warm-up values spiral downwards at the switch; with the data set kept in every batch it is calql with
            more critics; without the first phase, rlpd without prior data.
Named       `calibrated` off pushes down as cql does (the paper's locomotion). The gap is taken over all critics; the authors'
            code takes it over a random few, which is the same on average. Networks, targets, temperature and optimisers are
            carried over, as in their code.
State       `conservatism`, 1: a factor of the weight, which the online phase sets to 0; then the gap is not computed.

Shapes: B rows, M critics, K actions per state.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import conservatism, ensembles, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    weight: float = 5.0
    """How much the gap counts beside the squared error, where there is conservatism."""
    calibrated: bool = True
    """Never push values below the data's returns."""
    least: float | None = -200.0
    """A gap below this is left as it is; none does not bound it."""
    num_actions: int = 10
    """Actions per state from each of the three distributions."""
    members: int = 10
    """Number of critics."""
    least_of: int = 2
    """How many of them, drawn at random, a target takes the least of."""
    layer_norm: bool = True
    """Normalise the hidden layers of actor and critics."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    actor_lr: float = 1e-4
    """Learning rate of the actor and the temperature."""
    critic_lr: float = 3e-4
    """Learning rate of the critics."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"weight >= 0": self.weight >= 0, "num_actions >= 1": self.num_actions >= 1}
        check(self, rules | {"1 <= least_of <= members": 1 <= self.least_of <= self.members})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden, layer_norm=self.layer_norm)
        floor = {"mc_return"} if self.calibrated else set()
        return ControlAlgorithm(
            name="wsrl",
            networks={
                "actor": Policy(body=body),
                "critic": Ensemble(members=self.members, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.critic_lr),
                Term(name="actor", loss=actor_loss, trains=("actor", "temperature"), lr=self.actor_lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"} | floor),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
            init=start,
        )


def start() -> State:
    return {"conservatism": 1.0}


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        action_BA, _ = networks["actor"](batch["next_obs"]).sample(generator)
        next_MB = networks["critic_target"](batch["next_obs"], action_BA)
        value_B = ensembles.least_of_some(next_MB, config.least_of, generator)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    loss_B, watch, surprise_B = values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0)
    if not state["conservatism"]:
        return Loss(loss_B, watch, surprise_B)
    gap_MB = gap(networks, batch, q_MB, generator, config)
    held_B = (gap_MB if config.least is None else gap_MB.clamp(min=config.least)).sum(0)
    return Loss(loss_B + state["conservatism"] * config.weight * held_B, {**watch, "gap": gap_MB}, surprise_B)


def gap(networks: Networks, batch: Batch, q_MB: Tensor, generator: Generator, config: Config) -> Tensor:
    """How far the values of all actions lie above those of the data, [M, B]."""
    obs_B = batch["obs"]
    next_obs_B = conservatism.next_seen(obs_B, batch["next_obs"], batch["discount"])
    drawn = conservatism.proposals(networks["actor"], obs_B, next_obs_B, config.num_actions, generator)
    value_MKB = networks["critic"](obs_B.expand(len(drawn.action_KBA), *obs_B.shape), drawn.action_KBA)
    if config.calibrated:
        value_MKB = conservatism.calibrated(value_MKB, batch["mc_return"], drawn.uniform)
    return conservatism.gap(value_MKB, drawn, q_MB)


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    """Actor and temperature in one gradient step: each part holds the other's number still."""
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, q_B = networks["temperature"](), networks["critic"](batch["obs"], action_BA).amin(0)
    loss_B = soft.actor_loss(logp_B, q_B, log_alpha.exp()) + soft.temperature_loss(log_alpha, logp_B, -action_BA.shape[-1])
    return Loss(loss_B, {"entropy": -logp_B, "alpha": log_alpha.exp()})
