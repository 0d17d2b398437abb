"""Uni-O4: PPO's objective on a data set and then with actors, so that nothing has to be rebalanced where they take over.

Paper       Uni-O4: Unifying Online and Offline Deep RL with Multi-Step On-Policy Optimization (arXiv 2311.03351).
Estimator   the importance-weighted policy gradient, cut off at a clip; offline its advantages are those of IQL's critics at
            actions of a fixed old policy, online those of GAE.
Equation    values:  as in iql
            model:   |f_k(s, a) - (s' - s)|^2, each dimension in units of its deviation
            clone:   -log pi_i(a|s) - diversity (log pi_i(a'|s) - max_{j != i} log pi_j(a'|s)),   a' ~ pi_i(s) with gradient
            improve: -min(u A, clip(u) A),   u = pi_i(a|s) / old_i(a|s),   a ~ old_i(s),   A = whitened min_m Q_m(s, a) - V(s)
            policy and value: as in ppo
Assumption  six terms in stages, one or more a phase (`off` names the others): values, model; clone; improve, with the review
            "old"; policy and value, with actors. Observations are normalised by the data set, and stay so.
            The review lets old_i take over pi_i if that is worth more in the model: the mean of min_m Q_m along `horizon` steps
            of its mode, from states of the data. The actor takes over whoever is worth most.
Degenerate  one member without diversity is BPPO (arXiv 2302.11312) with the old policy judged in a model; without the offline
            stages, ppo.
Named       `diversity_at` "policy" is the divergence that the paper writes; "data", what the authors' code comes to, scales the
            likelihood by 1 + diversity. The model is the mean of an ensemble with squared errors, keeps within what the batch
            has seen, and ends no episode; theirs draws a Gaussian member. They choose among the best three by playing; here no
            episode is played offline. The clip does not decay; theirs does over 200 updates. Actions that leave [-1, 1] are
            clipped before they are valued.
State       `scores`: what each old policy is worth in the model; empty before the first review.

Shapes: B rows, M critics, K models, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import (
    ControlAlgorithm,
    Loss,
    Networks,
    Review,
    Reviewed,
    State,
    Target,
    Term,
    act_by_sampling,
    check,
)
from freerun.networks import Body, Ensemble, Network, Policy
from freerun.ops import distributions, losses, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    members: int = 4
    """Policies that are cloned and improved."""
    diversity: float = 0.1
    """How much a clone is to differ from the others."""
    diversity_at: Literal["policy", "data"] = "policy"
    """Where that is measured."""
    expectile: float = 0.7
    """Which expectile of the values of the data's actions V is, offline."""
    models: int = 5
    """Members of the model of the environment."""
    horizon: int = 100
    """Steps in the model over which a policy is judged."""
    review_every: int = 100
    """Updates between two judgements."""
    offline_clip: float = 0.25
    """How far an offline ratio may move before its gradient stops."""
    clip: float = 0.05
    """The same of an online ratio."""
    decay: float = 0.95
    """GAE's lambda."""
    entropy: float = 0.01
    """Weight of the entropy, online."""
    gamma: float = 0.99
    """Discount."""
    rate: float = 0.005
    """Step of the target critics towards the critics, each update."""
    offline_lr: float = 1e-4
    """Learning rate of values, model, clones and their improvement."""
    lr: float = 3e-5
    """Learning rate of the policy, online."""
    value_lr: float = 2e-4
    """Learning rate of the value, online."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        rules |= {"0 < rate <= 1": 0 < self.rate <= 1, "0 < expectile < 1": 0 < self.expectile < 1}
        rules |= {"0 <= diversity < 1": 0 <= self.diversity < 1, "entropy >= 0": self.entropy >= 0}
        rules |= {"clip, offline_clip > 0": min(self.clip, self.offline_clip) > 0}
        counts = (self.members, self.models, self.horizon, self.review_every)
        check(self, rules | {"members, models, horizon, review_every >= 1": min(counts) >= 1})

    def build(self) -> ControlAlgorithm:
        # The model adds changes up to observations, which bytes are no numbers for.
        body, lr = Body(hidden=self.hidden, encoder="flat"), self.offline_lr
        policy = Policy(body=body, squash=False, tanh_mean=True, state_std=False)
        members = tuple(f"member_{i}" for i in range(self.members))
        networks: dict[str, Network] = dict.fromkeys(("actor", *members), policy)
        networks |= {name.replace("member", "old"): policy for name in members}
        networks |= {"value": Ensemble(reads=("obs",), body=body), "critic": Ensemble(members=2, body=body)}
        networks |= {"model": Ensemble(outputs="obs", members=self.models, body=body)}
        return ControlAlgorithm(
            name="unio4",
            networks=networks,
            terms=(
                Term(name="values", loss=partial(values_loss, config=self), trains=("value", "critic"), lr=lr),
                Term(name="model", loss=model_loss, trains=("model",), lr=lr),
                Term(name="clone", loss=partial(clone_loss, config=self), trains=members, lr=lr),
                Term(name="improve", loss=partial(improve_loss, config=self), trains=members, lr=lr),
                Term(name="policy", loss=partial(policy_loss, config=self), trains=("actor",), lr=self.lr),
                Term(name="value", loss=value_loss, trains=("value",), lr=self.value_lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "reward", "next_obs", "discount", "log_prob", "advantage", "returns"}),
            targets=(Target(online="critic", target="critic_target", rate=self.rate),),
            reviews=(Review(name="old", look=partial(review, config=self), every=self.review_every),),
            gamma=self.gamma,
            actions="continuous",
            consumes="rollout",
            prepare=partial(prepare, config=self),
            uses=frozenset({"obs", "next_obs", "reward", "terminated", "truncated"}),
            makes=frozenset({"advantage", "returns"}),
            init=start,
        )


def start() -> State:
    return {"scores": []}


# --- offline -----------------------------------------------------------------------------------------------------------------


def values_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """IQL's: the two losses have no parameter in common."""
    obs_B, action_B = batch["obs"], batch["action"]
    value_B = networks["value"](obs_B)[0]
    with torch.no_grad():
        data_B = networks["critic_target"](obs_B, action_B).amin(0)
        target_B = values.td_target(batch["reward"], batch["discount"], networks["value"](batch["next_obs"])[0])
    q_MB = networks["critic"](obs_B, action_B)
    total_B = values.expectile(data_B - value_B, config.expectile) + values.squared_errors(q_MB, target_B)
    return Loss(total_B, {"value": value_B, "q": q_MB}, (q_MB - target_B).abs().amax(0))


def model_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    obs_B = batch["obs"]
    # Where the task ended there is no next state to foretell.
    goes_on_B1 = (batch["discount"] > 0).unsqueeze(-1)
    moved_BD = torch.where(goes_on_B1, batch["next_obs"].detach() - obs_B, 0.0)
    unit_D = moved_BD.std(0, correction=0) + 1e-3
    error_KBD = (networks["model"](obs_B, batch["action"]) - moved_BD) / unit_D
    error_KB = (error_KBD.square() * goes_on_B1).mean(-1)
    return Loss(error_KB.sum(0), {"model_error": error_KB})


def members_of(networks: Networks, config: Config, obs_B: Tensor) -> list[Any]:
    return [networks[f"member_{i}"](obs_B) for i in range(config.members)]


def clone_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    policies = members_of(networks, config, batch["obs"])
    likelihood_B = torch.stack([policy.log_prob(batch["action"]) for policy in policies]).sum(0)
    if config.members == 1 or not config.diversity:
        return Loss(-likelihood_B, {"likelihood": likelihood_B / config.members})
    apart_B = torch.zeros_like(likelihood_B)
    for i, policy in enumerate(policies):
        action_BA = policy.sample(generator)[0] if config.diversity_at == "policy" else batch["action"]
        others = [distributions.still(other).log_prob(action_BA) for j, other in enumerate(policies) if j != i]
        apart_B = apart_B + policy.log_prob(action_BA) - torch.stack(others).amax(0)
    watch = {"likelihood": likelihood_B / config.members, "divergence": apart_B / config.members}
    return Loss(-likelihood_B - config.diversity * apart_B, watch)


def improve_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    obs_B = batch["obs"]
    loss_B = clipped_B = torch.zeros(len(obs_B), device=obs_B.device)
    for i, policy in enumerate(members_of(networks, config, obs_B)):
        with torch.no_grad():
            action_BA, logp_B = networks[f"old_{i}"](obs_B).sample(generator)
            worth_B = networks["critic"](obs_B, action_BA.clamp(-1.0, 1.0)).amin(0) - networks["value"](obs_B)[0]
        log_ratio_B = losses.log_ratio(policy.log_prob(action_BA), logp_B)
        clip = config.offline_clip
        part_B, beyond_B = losses.clipped_surrogate(log_ratio_B, values.whitened(worth_B), low=clip, high=clip)
        loss_B, clipped_B = loss_B + part_B, clipped_B + beyond_B.float()
    return Loss(loss_B, {"ratio/clipped": clipped_B / config.members})


def review(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Reviewed:
    """Old policies take over what is better than they are, and the actor the best of them."""
    found = [worth(networks, f"member_{i}", batch["obs"], config) for i in range(config.members)]
    before = state["scores"] or [None] * config.members
    better = [i for i, (new, old) in enumerate(zip(found, before, strict=True)) if old is None or new > old]
    scores = [found[i] if i in better else before[i] for i in range(config.members)]
    best = max(range(config.members), key=lambda i: scores[i])
    takes = {f"old_{i}": f"member_{i}" for i in better}
    # A best policy that is no better than before is what the actor is already.
    return Reviewed({**state, "scores": scores}, takes | ({"actor": f"member_{best}"} if best in better else {}))


def worth(networks: Networks, member: str, obs_B: Tensor, config: Config) -> float:
    """The mean value along what the model says would follow, as far as it stays where the data is."""
    total, low_D, high_D = torch.zeros((), device=obs_B.device), obs_B.amin(0), obs_B.amax(0)
    for _ in range(config.horizon):
        action_BA = networks[member](obs_B).mode
        total += networks["critic"](obs_B, action_BA).amin(0).mean()
        obs_B = (obs_B + networks["model"](obs_B, action_BA).mean(0)).clamp(low_D, high_D)
    return float(total) / config.horizon


# --- online ------------------------------------------------------------------------------------------------------------------


def prepare(networks: Networks, batch: Batch, state: State, *, config: Config) -> Mapping[str, Tensor]:
    value_TN, next_value_TN = (networks["value"](batch[name])[0] for name in ("obs", "next_obs"))
    ends = batch["terminated"], batch["truncated"]
    advantage_TN, returns_TN = values.gae(
        batch["reward"], value_TN, next_value_TN, *ends, gamma=config.gamma, decay=config.decay
    )
    return {"advantage": advantage_TN, "returns": returns_TN}


def policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    policy = networks["actor"](batch["obs"])
    log_ratio_B = losses.log_ratio(policy.log_prob(batch["action"]), batch["log_prob"])
    advantage_B, clip = values.whitened(batch["advantage"]), config.clip
    loss_B, clipped_B = losses.clipped_surrogate(log_ratio_B, advantage_B, low=clip, high=clip)
    entropy_B = policy.entropy()
    return Loss(loss_B - config.entropy * entropy_B, {"entropy": entropy_B, "ratio/clipped": clipped_B})


def value_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    value_B = networks["value"](batch["obs"])[0]
    return Loss((value_B - batch["returns"].detach()).square(), {"value": value_B})
