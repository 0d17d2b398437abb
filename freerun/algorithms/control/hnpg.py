"""HNPG: the natural policy gradient of on-policy data, to which offline data contribute states, and rewards for the critic.

Paper       Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees (arXiv 2311.08384).
Estimator   TRPO's step on the sum of an on-policy and an offline surrogate; the critic is fitted to Monte-Carlo returns of what
            was just played and to one-step targets on the data.
Equation    critic: (Q(s, a) - y)^2 on-policy, y the return from (s, a);   weight (Q(s, a) - r - discount V'(s'))^2 offline
            policy: -u A on-policy, A by GAE;   -weight u (Q(s, a') - V(s)) offline, a' ~ pi now;   V = E_pi Q
            step:   along the natural gradient, KL(pi before || pi) <= radius over the states of both
Assumption  the offline data cover what a good policy does. Where they do not, their surrogate is noise around 0 and the step is
            TRPO's. No log-probs of who made the data are needed.
Degenerate  weight = 0 is TRPO with a critic of actions.
Named       `credit`: "gae" credits on-policy actions in the authors' experiments and code; "critic" takes Q - V there too, as
            their analysis does. Offline, actions are fresh draws at the data's states, as in the code; the analysis regresses
            at the data's own actions. One critic and one policy serve all steps, where the authors fit one per
            step, backwards: what is seen has to say which step it is.
State       none.

Shapes: B rows, K actions drawn for an expectation, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import (
    ControlAlgorithm,
    Loss,
    Natural,
    Networks,
    Stage,
    State,
    Target,
    Term,
    act_by_sampling,
    check,
)
from freerun.networks import Body, Ensemble, Policy
from freerun.ops import expectation, losses, natural, values
from freerun.types import Batch

SEED = 0
"""Of the actions with which `prepare`, which has no generator, takes its expectations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    source: str = "dataset"
    """Source of the offline rows."""
    weight: float = 1.0
    """Weight of the offline losses."""
    credit: Literal["gae", "critic"] = "gae"
    """What credits on-policy actions."""
    gamma: float = 0.99
    """Discount."""
    decay: float = 0.97
    """GAE's lambda."""
    critic_steps: int = 30
    """Updates of the critic before one of the policy; each sees all on-policy rows."""
    target_every: int = 10
    """Updates after which offline targets are those of the critic as it is then."""
    lr: float = 1e-3
    """Learning rate of the critic."""
    radius: float = 0.01
    """Largest mean KL of a step."""
    damping: float = 0.1
    """Added to the Hessian of the KL."""
    draws: int = 10
    """Actions drawn for an expectation, where they are continuous; discrete ones are summed over."""
    actor_hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy; the authors' are 16 wide, of one for each step."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of the critic."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        rules |= {"weight, damping >= 0": min(self.weight, self.damping) >= 0, "radius > 0": self.radius > 0}
        least = min(self.critic_steps, self.target_every, self.draws)
        check(self, rules | {"critic_steps, target_every, draws >= 1": least >= 1})

    def build(self) -> ControlAlgorithm:
        tanh = partial(Body, activation="tanh")
        step = Natural(divergence=moved, radius=self.radius, damping=self.damping)
        policy = partial(Term, trains=("actor",), lr=0.0, natural=step)
        critic = partial(Term, trains=("critic",), lr=self.lr)
        terms = [critic(name="critic_rollout", loss=critic_loss, source="rollout")]
        surrogates = [policy(name="policy_rollout", loss=partial(policy_loss, config=self), source="rollout")]
        if self.weight:
            offline = partial(offline_critic_loss, config=self)
            terms += [critic(name="critic_offline", loss=offline, source=self.source, joins=True)]
            offline = partial(offline_policy_loss, config=self)
            surrogates += [policy(name="policy_offline", loss=offline, source=self.source, joins=True)]
        needs = {"obs", "action", "log_prob", "returns"} | ({"advantage"} if self.credit == "gae" else set())
        return ControlAlgorithm(
            name="hnpg",
            networks={
                "actor": Policy(body=tanh(hidden=self.actor_hidden), squash=False, state_std=False),
                "critic": Ensemble(body=tanh(hidden=self.hidden)),
            },
            terms=(*terms, *surrogates),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset(needs | ({"reward", "next_obs", "discount"} if self.weight else set())),
            targets=(
                Target(online="actor", target="actor_before", rate=1.0),
                Target(online="critic", target="critic_target", rate=1.0, every=self.target_every),
            ),
            gamma=self.gamma,
            consumes="rollout",
            prepare=partial(prepare, config=self),
            uses=frozenset({"obs", "next_obs", "reward", "terminated", "truncated"}),
            makes=frozenset({"advantage", "returns"}),
            stages=(
                Stage(terms=tuple(term.name for term in terms), epochs=self.critic_steps, minibatches=1),
                Stage(terms=tuple(term.name for term in surrogates), epochs=1, minibatches=1),
            ),
        )


def value(networks: Networks, name: str, policy: str, obs_B: Tensor, config: Config, generator: Generator) -> Tensor:
    """What the critic `name` says that the policy `policy` is worth, [B]."""

    def critic(obs: Tensor, action: Tensor) -> Tensor:
        q_MB: Tensor = networks[name](obs, action)
        return q_MB[0]

    return expectation.of_value(critic, networks[policy](obs_B), obs_B, config.draws, generator)


def prepare(networks: Networks, batch: Batch, state: State, *, config: Config) -> Mapping[str, Tensor]:
    generator = torch.Generator(batch["obs"].device).manual_seed(SEED)
    value_TN, next_TN = (value(networks, "critic", "actor", batch[name], config, generator) for name in ("obs", "next_obs"))
    # Of drawn expectations, one per state: returns are then sums of rewards, to which no value adds noise.
    goes_on_TN = ~(batch["terminated"] | batch["truncated"])
    next_TN[:-1] = torch.where(goes_on_TN[:-1], value_TN[1:], next_TN[:-1])
    credit = partial(
        values.gae, batch["reward"], value_TN, next_TN, batch["terminated"], batch["truncated"], gamma=config.gamma
    )
    return {"advantage": credit(decay=config.decay)[0], "returns": credit(decay=1.0)[1]}


def critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    q_B = networks["critic"](batch["obs"], batch["action"])[0]
    return Loss((q_B - batch["returns"].detach()).square(), {"q": q_B})


def offline_critic_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    with torch.no_grad():
        next_B = value(networks, "critic_target", "actor", batch["next_obs"], config, generator)
        target_B = values.td_target(batch["reward"], batch["discount"], next_B)
    q_B = networks["critic"](batch["obs"], batch["action"])[0]
    return Loss(config.weight * (q_B - target_B).square(), {"q_offline": q_B})


def advantage(networks: Networks, obs_B: Tensor, action_B: Tensor, config: Config, generator: Generator) -> Tensor:
    """Of the policy before the step, whatever step is being tried."""
    q_MB: Tensor = networks["critic"](obs_B, action_B)
    return q_MB[0] - value(networks, "critic", "actor_before", obs_B, config, generator)


def policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    policy = networks["actor"](batch["obs"])
    ratio_B = losses.log_ratio(policy.log_prob(batch["action"]), batch["log_prob"]).exp()
    if config.credit == "gae":
        advantage_B = batch["advantage"]
    else:
        with torch.no_grad():
            advantage_B = advantage(networks, batch["obs"], batch["action"], config, generator)
    return Loss(losses.ratio_loss(ratio_B, advantage_B), {"entropy": policy.entropy(), "advantage": advantage_B.abs()})


def offline_policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B = batch["obs"]
    with torch.no_grad():
        action_B, logp_B = networks["actor_before"](obs_B).sample(generator)
        advantage_B = advantage(networks, obs_B, action_B, config, generator)
    ratio_B = losses.log_ratio(networks["actor"](obs_B).log_prob(action_B), logp_B).exp()
    return Loss(config.weight * losses.ratio_loss(ratio_B, advantage_B), {"advantage_offline": advantage_B.abs()})


def moved(networks: Networks, batch: Batch) -> Tensor:
    return natural.divergence(networks["actor_before"](batch["obs"]), networks["actor"](batch["obs"]))
