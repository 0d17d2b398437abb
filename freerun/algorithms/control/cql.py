"""CQL: SAC on a data set, its critics pushed down where the data has no actions and up where it has.

Paper       Conservative Q-Learning for Offline Reinforcement Learning (arXiv 2006.04779), the form CQL(H).
Estimator   the pathwise gradient of critics that are bounds from below, through actions of a squashed Gaussian.
Equation    critic: sum_i (Q_i(s, a) - y)^2 + weight (log sum_a' exp Q_i(s, a') - Q_i(s, a))
            y = r + discount min_i Q'_i(s', a''),   a'' ~ pi(s')
            actor:  alpha log pi(a|s) - min_i Q_i(s, a),   a ~ pi with gradient
            alpha:  -log alpha (log pi(a|s) - |A|)
Assumption  the data covers what a good policy does; where it does not, values are low whatever is true.
Degenerate  weight = 0 is SAC without entropy in its targets, on data.
Named       the sum over all actions is estimated by importance sampling from the uniform distribution and from the policy at
            the state and at the next state, `num_actions` each. `wanted_gap` learns the weight, so that the gap becomes that
            number (the paper's Lagrange form); `weight` is then a factor. `entropy_target` has the entropy in the targets, as
            the paper's derivation has; its code and CORL have not. `max_target` takes the best of `num_actions` next actions in
            the target (AntMaze).
State       `conservatism`, 1: a factor of the weight, which a phase may set; at 0 the gap is not computed.

Shapes: B rows, M critics, K actions per state.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Network, Policy, Scalar
from freerun.ops import conservatism, distributions, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    weight: float = 10.0
    """How much the gap counts beside the squared error."""
    wanted_gap: float | None = None
    """Learn a further weight that makes the gap so large; none keeps the weight as it is."""
    num_actions: int = 10
    """Actions per state from each of the three distributions."""
    entropy_target: bool = False
    """Pay for the entropy of the next action in the target."""
    max_target: bool = False
    """Value the next state by the best of `num_actions` actions."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    actor_lr: float = 3e-5
    """Learning rate of the actor and the temperature."""
    critic_lr: float = 3e-4
    """Learning rate of the critics and the multiplier."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        check(self, rules | {"weight >= 0": self.weight >= 0, "num_actions >= 1": self.num_actions >= 1})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        networks: dict[str, Network] = {"actor": Policy(body=body), "critic": Ensemble(members=2, body=body)}
        networks |= {"temperature": Scalar(value=0.0)}
        held: tuple[str, ...] = ("critic",)
        if self.wanted_gap is not None:
            networks, held = networks | {"multiplier": Scalar(value=0.0)}, ("critic", "multiplier")
        return ControlAlgorithm(
            name="cql",
            networks=networks,
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=held, lr=self.critic_lr),
                Term(name="actor", loss=actor_loss, trains=("actor", "temperature"), lr=self.actor_lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
            init=start,
        )


def start() -> State:
    return {"conservatism": 1.0}


@torch.no_grad()
def next_value(networks: Networks, batch: Batch, generator: Generator, config: Config) -> Tensor:
    """What the next state is worth, [B]."""
    obs_B, policy = batch["next_obs"], networks["actor"](batch["next_obs"])
    value_B: Tensor
    if config.max_target:
        action_KBA, logp_KB = distributions.repeated(policy, config.num_actions).sample(generator)
        value_KB = networks["critic_target"](obs_B.expand(len(action_KBA), *obs_B.shape), action_KBA).amin(0)
        value_B, best_B = value_KB.max(0)
        logp_B = logp_KB.gather(0, best_B[None])[0]
    else:
        action_BA, logp_B = policy.sample(generator)
        value_B = networks["critic_target"](obs_B, action_BA).amin(0)
    price: Tensor | float = networks["temperature"]().exp() if config.entropy_target else 0.0
    return value_B - price * logp_B


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    target_B = values.td_target(batch["reward"], batch["discount"], next_value(networks, batch, generator, config))
    q_MB = networks["critic"](batch["obs"], batch["action"])
    loss_B, watch, surprise_B = values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0)
    if not state["conservatism"]:
        # What the term trains has to be in its loss, though nothing moves it.
        still: Tensor | float = 0.0 if config.wanted_gap is None else 0.0 * networks["multiplier"]()
        return Loss(loss_B + still, watch, surprise_B)
    gap_MB = gap(networks, batch, q_MB, generator, config)
    if config.wanted_gap is None:
        held_B = gap_MB.sum(0)
    else:
        held_B = conservatism.held_to(gap_MB, config.wanted_gap, networks["multiplier"]())
    return Loss(loss_B + state["conservatism"] * config.weight * held_B, {**watch, "gap": gap_MB}, surprise_B)


def gap(networks: Networks, batch: Batch, q_MB: Tensor, generator: Generator, config: Config) -> Tensor:
    """How far the values of all actions lie above those of the data, [M, B]."""
    obs_B = batch["obs"]
    next_obs_B = conservatism.next_seen(obs_B, batch["next_obs"], batch["discount"])
    drawn = conservatism.proposals(networks["actor"], obs_B, next_obs_B, config.num_actions, generator)
    value_MKB = networks["critic"](obs_B.expand(len(drawn.action_KBA), *obs_B.shape), drawn.action_KBA)
    return conservatism.gap(value_MKB, drawn, q_MB)


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    """Actor and temperature in one gradient step: each part holds the other's number still."""
    action_BA, logp_B = networks["actor"](batch["obs"]).sample(generator)
    log_alpha, q_B = networks["temperature"](), networks["critic"](batch["obs"], action_BA).amin(0)
    loss_B = soft.actor_loss(logp_B, q_B, log_alpha.exp()) + soft.temperature_loss(log_alpha, logp_B, -action_BA.shape[-1])
    return Loss(loss_B, {"entropy": -logp_B, "alpha": log_alpha.exp()})
