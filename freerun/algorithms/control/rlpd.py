"""RLPD: SAC from scratch, many updates per step, half of every batch from prior data, critics that layer norm keeps in bounds.

Paper       Efficient Online Reinforcement Learning with Offline Data (arXiv 2302.02948).
Estimator   as for sac; the target's pessimism is that of a few critics which are drawn anew for each update.
Equation    critic: sum_i (Q_i(s, a) - y)^2
            y = r + discount (min_{i in C} Q'_i(s', a') - alpha log pi(a'|s')),   C of `least_of` critics,   a' ~ pi(s')
            actor:  alpha log pi(a|s) - mean_i Q_i(s, a),   a ~ pi with gradient
            alpha:  -log alpha (log pi(a|s) + H),   H = -entropy_scale |A|
Assumption  actors play on; the prior data has rewards, and may be as bad as it likes. The recipe gives the halves: two sources
            in equal parts, `utd` updates per step of the environment, of which every `actor_every`-th trains the actor.
Degenerate  without a data set, layer norm and with `utd` 20 it is REDQ (arXiv 2101.05982).
Named       `entropy_target` off, with `least_of` 1, is what AntMaze has; `entropy_scale` 0.5 is the authors' default, 1 SAC's.
State       none: the temperature is a network with one number.

Shapes: B rows, M critics.
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
    least_of: int = 2
    """How many of them, drawn at random, a target takes the least of."""
    layer_norm: bool = True
    """Normalise the hidden layers of the critics."""
    entropy_target: bool = True
    """Pay for the entropy of the next action in the target."""
    entropy_scale: float = 0.5
    """Target entropy, as a negative multiple of the number of action dimensions."""
    actor_every: int = 20
    """Updates of the critics per update of actor and temperature: the phase's `utd`."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    lr: float = 3e-4
    """Learning rate of all networks."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"1 <= least_of <= members": 1 <= self.least_of <= self.members}
        check(self, rules | {"actor_every >= 1": self.actor_every >= 1})

    def build(self) -> ControlAlgorithm:
        critics = Body(hidden=self.hidden, layer_norm=self.layer_norm)
        critic, actor = partial(critic_loss, config=self), partial(actor_loss, config=self)
        return ControlAlgorithm(
            name="rlpd",
            networks={
                "actor": Policy(body=Body(hidden=self.hidden)),
                "critic": Ensemble(members=self.members, body=critics),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=critic, trains=("critic",), lr=self.lr),
                Term(name="actor", loss=actor, trains=("actor", "temperature"), lr=self.lr, every=self.actor_every),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
        )


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        action_BA, logp_B = networks["actor"](batch["next_obs"]).sample(generator)
        next_MB = networks["critic_target"](batch["next_obs"], action_BA)
        value_B = ensembles.least_of_some(next_MB, config.least_of, generator)
        if config.entropy_target:
            value_B = value_B - networks["temperature"]().exp() * logp_B
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """Actor and temperature in one gradient step: each part holds the other's number still."""
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, q_B = networks["temperature"](), networks["critic"](batch["obs"], action_BA).mean(0)
    wanted = -config.entropy_scale * action_BA.shape[-1]
    loss_B = soft.actor_loss(logp_B, q_B, log_alpha.exp()) + soft.temperature_loss(log_alpha, logp_B, wanted)
    return Loss(loss_B, {"entropy": -logp_B, "alpha": log_alpha.exp()})
