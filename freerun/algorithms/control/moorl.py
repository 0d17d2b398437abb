"""MOORL: SAC on prior data and on new data in turn, each time a few updates and a step towards what they led to.

Paper       MOORL: A Framework for Integrating Offline-Online Reinforcement Learning (arXiv 2506.09574).
Estimator   SAC's; the parameters that count follow those of the inner updates by Reptile's first-order meta-gradient.
Equation    inner, K times on one source:  critic, actor, alpha as in sac
            then  theta <- theta + meta_rate (theta_inner - theta),  and the next inner updates begin there
Assumption  both sources are of the same task. The recipe draws the source of K updates (`spell` of a phase), and makes a
            multiple of K updates per step, so that what acts is theta.
Degenerate  meta_rate = 1, or K = 1 with the learning rates scaled by it, is SAC on batches of one source.
Named       K and meta_rate are not given in what could be read of the paper. Optimisers keep their history from one inner loop
            to the next, and target critics follow the inner ones.
State       none: the temperature is a network with one number.

Shapes: B rows, M critics.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator

from freerun.algorithms.control_base import (
    ControlAlgorithm,
    Lookahead,
    Loss,
    Networks,
    State,
    Target,
    Term,
    act_by_sampling,
    check,
)
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    inner: int = 8
    """Updates between two steps of the parameters that count, K: also the `spell` of the phase."""
    meta_rate: float = 0.5
    """Length of such a step, as a share of the way."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    actor_lr: float = 3e-4
    """Learning rate of the actor."""
    critic_lr: float = 1e-3
    """Learning rate of the critics."""
    alpha_lr: float = 1e-3
    """Learning rate of the temperature."""
    entropy_scale: float = 1.0
    """Target entropy, as a negative multiple of the number of action dimensions."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        check(self, rules | {"inner >= 1": self.inner >= 1, "0 < meta_rate <= 1": 0 < self.meta_rate <= 1})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        trained = {"actor": self.actor_lr, "temperature": self.alpha_lr}
        meta = (
            Lookahead(online=name, target=f"{name}_meta", rate=self.meta_rate, every=self.inner)
            for name in ("actor", "critic", "temperature")
        )
        return ControlAlgorithm(
            name="moorl",
            networks={
                "actor": Policy(body=body),
                "critic": Ensemble(members=2, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=critic_loss, trains=("critic",), lr=self.critic_lr),
                Term(name="actor", loss=partial(actor_loss, config=self), trains=tuple(trained), lr=trained),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate), *meta),
            gamma=self.gamma,
            actions="continuous",
        )


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    with torch.no_grad():
        action_BA, logp_B = networks["actor"](batch["next_obs"]).sample(generator)
        value_B = networks["critic_target"](batch["next_obs"], action_BA).amin(0) - networks["temperature"]().exp() * logp_B
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, wanted = networks["temperature"](), -config.entropy_scale * action_BA.shape[-1]
    loss_B = soft.actor_loss(logp_B, networks["critic"](batch["obs"], action_BA).amin(0), log_alpha.exp())
    return Loss(loss_B + soft.temperature_loss(log_alpha, logp_B, wanted), {"entropy": -logp_B, "alpha": log_alpha.exp()})
