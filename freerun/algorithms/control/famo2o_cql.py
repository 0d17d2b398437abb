"""FamO2O on CQL: one policy for every weight of the critic against entropy, and a second one that picks it state by state.

Paper       Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online RL (arXiv 2310.17966).
Estimator   pathwise gradients of conservative critics: for the family through its actions, for the balance through those too.
Equation    critic:  as in cql, with actions of the family
            family:  alpha log pi(a|s, b) - b min_i Q_i(s, a),   a ~ pi(s, b) with gradient
            balance: -min_i Q_i(s, a),   b ~ p(s), a ~ pi(s, b) with gradient
            alpha:   -log alpha (log pi(a|s, b) - |A|)
Assumption  as for cql. What b balances is what the critic says and the entropy; the data enters through the critic.
Degenerate  low = high = 1 is cql with an input that never changes.
Named       b of the family's own loss is drawn uniformly from [low, high] while `online` is 0, and from the balance policy when
            a phase sets it to 1; everywhere else it is the balance policy's. `next_balance`: "own" (default) takes the next
            state's balance for the next action, "previous" that of the state before, as the authors' code does.
State       `online`, 0. `conservatism`, 1: a factor of the gap's weight, which a phase may set; at 0 the gap is not computed.

Shapes: B rows, M critics, K actions per state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import Ask, ControlAlgorithm, Loss, Networks, State, Target, Term, check, greedily
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import balance, conservatism, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    low: float = 0.5
    """Least weight of the critic."""
    high: float = 1.5
    """Largest weight of the critic."""
    weight: float = 1.0
    """How much the gap counts beside the squared error."""
    num_actions: int = 10
    """Actions per state from each of the three distributions."""
    next_balance: Literal["own", "previous"] = "own"
    """Whose balance the next action has."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    actor_lr: float = 1e-4
    """Learning rate of family, balance and temperature."""
    critic_lr: float = 3e-4
    """Learning rate of the critics."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 < rate <= 1": 0 < self.rate <= 1}
        rules |= {"0 <= low <= high": 0 <= self.low <= self.high, "weight >= 0": self.weight >= 0}
        check(self, rules | {"num_actions >= 1": self.num_actions >= 1})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden)
        family, adapts = partial(actor_loss, config=self), partial(balance_loss, config=self)
        return ControlAlgorithm(
            name="famo2o_cql",
            networks={
                "actor": Policy(body=body, context=balance.WIDTH),
                "balance": Policy(body=body, width=1),
                "critic": Ensemble(members=2, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("critic",), lr=self.critic_lr),
                Term(name="actor", loss=family, trains=("actor", "temperature"), lr=self.actor_lr),
                Term(name="balance", loss=adapts, trains=("balance",), lr=self.actor_lr),
            ),
            act=partial(act, config=self),
            acts_with=("actor", "balance"),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            gamma=self.gamma,
            actions="continuous",
            init=start,
        )


def start() -> State:
    return {"online": 0.0, "conservatism": 1.0}


def act(networks: Networks, obs: Tensor, ask: Ask, generator: Generator, *, config: Config) -> Mapping[str, Tensor]:
    balance_N1 = balance.within(networks["balance"](obs).mode, config.low, config.high)
    policy = networks["actor"](obs, balance.code(balance_N1))
    if ask.mode == "greedy":
        return greedily(policy.mode)
    action_NA, logp_N = policy.sample(generator)
    return {"action": action_NA, "log_prob": logp_N}


def chosen(networks: Networks, obs_B: Tensor, generator: Generator, config: Config) -> Tensor:
    """Balances that the balance policy draws, [B, 1], with gradient."""
    return balance.within(networks["balance"](obs_B).sample(generator)[0], config.low, config.high)


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B, next_obs_B = batch["obs"], batch["next_obs"]
    with torch.no_grad():
        seen_B = next_obs_B if config.next_balance == "own" else obs_B
        balance_B1 = chosen(networks, seen_B, generator, config)
        action_BA, _ = networks["actor"](next_obs_B, balance.code(balance_B1)).sample(generator)
        value_B = networks["critic_target"](next_obs_B, action_BA).amin(0)
        target_B = values.td_target(batch["reward"], batch["discount"], value_B)
    q_MB = networks["critic"](obs_B, batch["action"])
    loss_B, watch, surprise_B = values.squared_errors(q_MB, target_B), {"q": q_MB}, (q_MB - target_B).abs().amax(0)
    if not state["conservatism"]:
        return Loss(loss_B, watch, surprise_B)

    def family(obs_B: Tensor) -> Any:
        return networks["actor"](obs_B, balance.code(chosen(networks, obs_B, generator, config)))

    next_seen_B = conservatism.next_seen(obs_B, next_obs_B, batch["discount"])
    drawn = conservatism.proposals(family, obs_B, next_seen_B, config.num_actions, generator)
    value_MKB = networks["critic"](obs_B.expand(len(drawn.action_KBA), *obs_B.shape), drawn.action_KBA)
    gap_MB = conservatism.gap(value_MKB, drawn, q_MB)
    return Loss(loss_B + state["conservatism"] * config.weight * gap_MB.sum(0), {**watch, "gap": gap_MB}, surprise_B)


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """Family and temperature in one gradient step: each part holds the other's number still."""
    obs_B = batch["obs"]
    with torch.no_grad():
        if state["online"]:
            balance_B1 = chosen(networks, obs_B, generator, config)
        else:
            unit_B1 = torch.rand(len(obs_B), 1, generator=generator, device=obs_B.device) * 2.0 - 1.0
            balance_B1 = balance.within(unit_B1, config.low, config.high)
    action_BA, logp_B = networks["actor"](obs_B, balance.code(balance_B1)).sample(generator)
    log_alpha, q_B = networks["temperature"](), balance_B1[:, 0] * networks["critic"](obs_B, action_BA).amin(0)
    loss_B = soft.actor_loss(logp_B, q_B, log_alpha.exp()) + soft.temperature_loss(log_alpha, logp_B, -action_BA.shape[-1])
    return Loss(loss_B, {"entropy": -logp_B, "alpha": log_alpha.exp()})


def balance_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B = batch["obs"]
    balance_B1 = chosen(networks, obs_B, generator, config)
    action_BA, _ = networks["actor"](obs_B, balance.code(balance_B1)).sample(generator)
    return Loss(-networks["critic"](obs_B, action_BA).amin(0), {"balance": balance_B1})
