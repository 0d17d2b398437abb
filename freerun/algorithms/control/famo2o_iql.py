"""FamO2O on IQL: one policy for every balance between improving and imitating, and a second one that picks it state by state.

Paper       Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online RL (arXiv 2310.17966).
Estimator   for the family, advantage-weighted log-likelihood with a temperature per row; for the balance, the pathwise gradient
            of a critic through the family's actions.
Equation    value and critic: as in iql
            family:  -min(exp(b (min_i Q'_i(s, a) - V(s))), cap) log pi(a|s, b)
            balance: alpha log p(b|s) - min_i Q'_i(s, a'),   b ~ p(s), a' ~ pi(s, b) with gradient
            alpha:   -log alpha (log p(b|s) + wanted)
Assumption  data whose quality depends on the state, so that no one inverse temperature suits all of it. Critics are trusted
            where the family may go, which is near the data.
Degenerate  low = high is iql with that inverse temperature, and an input that never changes.
Named       b is drawn uniformly from [low, high] while `online` is 0, and from the balance policy when a phase sets it to 1, as
            in the authors' code. Actors take the balance's mode and sample the family's action. `balance_every` 5 with
            [1, 5] is what is said of locomotion; AntMaze has [8, 14] and expectile 0.9.
State       `online`, 0.

Shapes: B rows, M critics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import Ask, ControlAlgorithm, Loss, Networks, State, Target, Term, check, greedily
from freerun.networks import Body, Ensemble, Policy, Scalar
from freerun.ops import balance, soft, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    low: float = 1.0
    """Least inverse temperature: near to the data."""
    high: float = 5.0
    """Largest inverse temperature: nearest to the best of the data."""
    expectile: float = 0.7
    """Which expectile of the values of the data's actions V is."""
    cap: float = 100.0
    """Largest weight of an action."""
    wanted_entropy: float = -0.5
    """Entropy that the balance is to keep, on a scale from -1 to 1."""
    balance_every: int = 1
    """Updates of the rest per update of the balance."""
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
        rules |= {"0 <= low <= high": 0 <= self.low <= self.high, "0 < expectile < 1": 0 < self.expectile < 1}
        check(self, rules | {"balance_every >= 1": self.balance_every >= 1})

    def build(self) -> ControlAlgorithm:
        body, every = Body(hidden=self.hidden), self.balance_every
        return ControlAlgorithm(
            name="famo2o_iql",
            networks={
                "actor": Policy(body=body, squash=False, tanh_mean=True, state_std=False, context=balance.WIDTH),
                "balance": Policy(body=body, state_std=False, width=1),
                "value": Ensemble(reads=("obs",), body=body),
                "critic": Ensemble(members=2, body=body),
                "temperature": Scalar(value=0.0),
            },
            terms=(
                Term(name="critic", loss=partial(critic_loss, config=self), trains=("value", "critic"), lr=self.lr),
                Term(name="actor", loss=partial(actor_loss, config=self), trains=("actor",), lr=self.lr),
                Term(
                    name="balance",
                    loss=partial(balance_loss, config=self),
                    trains=("balance", "temperature"),
                    lr=self.lr,
                    every=every,
                ),
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
    return {"online": 0.0}


def act(networks: Networks, obs: Tensor, ask: Ask, generator: Generator, *, config: Config) -> Mapping[str, Tensor]:
    balance_N1 = balance.within(networks["balance"](obs).mode, config.low, config.high)
    policy = networks["actor"](obs, balance.code(balance_N1))
    if ask.mode == "greedy":
        return greedily(policy.mode)
    action_NA, logp_N = policy.sample(generator)
    return {"action": action_NA, "log_prob": logp_N}


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """IQL's: the two losses have no parameter in common."""
    obs_B, action_B = batch["obs"], batch["action"]
    value_B = networks["value"](obs_B)[0]
    with torch.no_grad():
        data_B = networks["critic_target"](obs_B, action_B).amin(0)
        target_B = values.td_target(batch["reward"], batch["discount"], networks["value"](batch["next_obs"])[0])
    q_MB = networks["critic"](obs_B, action_B)
    total_B = values.expectile(data_B - value_B, config.expectile) + values.squared_errors(q_MB, target_B)
    return Loss(total_B, {"value": value_B, "q": q_MB}, (q_MB - target_B).abs().amax(0))


def actor_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B, action_B = batch["obs"], batch["action"]
    with torch.no_grad():
        if state["online"]:
            unit_B1, _ = networks["balance"](obs_B).sample(generator)
        else:
            unit_B1 = torch.rand(len(obs_B), 1, generator=generator, device=obs_B.device) * 2.0 - 1.0
        balance_B1 = balance.within(unit_B1, config.low, config.high)
        advantage_B = networks["critic_target"](obs_B, action_B).amin(0) - networks["value"](obs_B)[0]
        weight_B = (balance_B1[:, 0] * advantage_B).exp().clamp(max=config.cap)
    policy = networks["actor"](obs_B, balance.code(balance_B1))
    return Loss(-weight_B * policy.log_prob(action_B), {"weight": weight_B})


def balance_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """Balance and temperature in one gradient step: each part holds the other's number still."""
    obs_B = batch["obs"]
    unit_B1, logp_B = networks["balance"](obs_B).sample(generator)
    balance_B1 = balance.within(unit_B1, config.low, config.high)
    action_BA, _ = networks["actor"](obs_B, balance.code(balance_B1)).sample(generator)
    q_B = networks["critic_target"](obs_B, action_BA.clamp(-1.0, 1.0)).amin(0)
    log_alpha = networks["temperature"]()
    loss_B = soft.actor_loss(logp_B, q_B, log_alpha.exp()) + soft.temperature_loss(log_alpha, logp_B, config.wanted_entropy)
    return Loss(loss_B, {"balance": balance_B1, "alpha": log_alpha.exp()})
