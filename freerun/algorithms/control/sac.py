"""SAC: an off-policy actor-critic that maximises reward and entropy, with the weight of the entropy learned.

Paper       Soft Actor-Critic (arXiv 1812.05905); defaults as in CleanRL's implementation.
Estimator   the pathwise gradient of a critic through actions of a squashed Gaussian.
Equation    critic: sum_i (Q_i(s, a) - y)^2,   y = r + discount (min_i Q'_i(s', a') - alpha log pi(a'|s')),   a' ~ pi
            actor:  alpha log pi(a|s) - min_i Q_i(s, a),   a ~ pi with gradient
            alpha:  -log alpha (log pi(a|s) + H),   H = -entropy_scale |A|
Assumption  none on who made the data; but actions that the data lacks are valued by extrapolation, so use it with actors.
Degenerate  alpha = 0 with a fixed temperature leaves a deterministic-gradient method with noise in its policy.
Named       `alpha`: none learns the temperature (paper), a number fixes it. `actor_every`: CleanRL updates the actor every
            second time, twice; here it is updated as often as asked.
State       none: the temperature is a network with one number.

Shapes: B rows, M critics.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Network, Policy, Scalar
from freerun.ops import values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    actor_lr: float = 3e-4
    """Learning rate of the actor."""
    critic_lr: float = 1e-3
    """Learning rate of the critics."""
    alpha: float | None = None
    """Weight of the entropy; none learns it."""
    alpha_lr: float = 1e-3
    """Learning rate of the temperature."""
    entropy_scale: float = 1.0
    """Target entropy, as a negative multiple of the number of action dimensions."""
    actor_every: int = 1
    """Updates of the critics per update of actor and temperature."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""
    members: int = 2
    """Number of critics."""

    def __post_init__(self) -> None:
        rules = {
            "0 <= gamma <= 1": 0 <= self.gamma <= 1,
            "0 < rate <= 1": 0 < self.rate <= 1,
            "members >= 1": self.members >= 1,
        }
        check(self, rules | {"actor_every >= 1": self.actor_every >= 1, "alpha >= 0": self.alpha is None or self.alpha >= 0})

    def build(self) -> ControlAlgorithm:
        body, learns = Body(hidden=self.hidden), self.alpha is None
        networks: dict[str, Network] = {"actor": Policy(body=body), "critic": Ensemble(members=self.members, body=body)}
        trained = {"actor": self.actor_lr}
        if learns:
            networks |= {"temperature": Scalar(value=0.0)}
            trained |= {"temperature": self.alpha_lr}
        actor = partial(actor_loss, config=self)
        terms = (
            Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.critic_lr),
            Term(name="actor", loss=actor, trains=tuple(trained), lr=trained, every=self.actor_every),
        )
        return ControlAlgorithm(
            name="sac",
            networks=networks,
            terms=terms,
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
        )


def alpha_of(networks: Networks, config: Config) -> Tensor | float:
    """The weight of the entropy, without gradient."""
    return networks["temperature"]().detach().exp() if config.alpha is None else config.alpha


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        action_BA, logp_B = networks["actor"](batch["next_obs"]).sample(generator)
        value_B = networks["critic_target"](batch["next_obs"], action_BA).amin(0) - alpha_of(networks, config) * logp_B
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](batch["obs"], batch["action"])
    return Loss(values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """Actor and temperature in one gradient step: each part holds the other's number still."""
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    loss_B = alpha_of(networks, config) * logp_B - networks["critic"](batch["obs"], action_BA).amin(0)
    watch = {"entropy": -logp_B}
    if config.alpha is None:
        log_alpha, wanted = networks["temperature"](), -config.entropy_scale * action_BA.shape[-1]
        loss_B = loss_B - log_alpha * (logp_B.detach() + wanted)
        watch |= {"alpha": log_alpha.exp()}
    return Loss(loss_B, watch)
