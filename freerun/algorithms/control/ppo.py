"""PPO: the clipped policy gradient with a learned value, over a few epochs of what actors have just collected.

Paper       Proximal Policy Optimization (arXiv 1707.06347), advantages by GAE (arXiv 1506.02438); details as in CleanRL.
Estimator   the importance-weighted policy gradient, cut off where the ratio has already moved past the clip.
Equation    policy: -min(u A, clip(u, 1 - clip, 1 + clip) A) - entropy H(pi(.|s)),   u = pi(a|s) / mu(a|s)
            value:  (V(s) - R)^2,   R = A_gae + V_old(s)
Assumption  the policy moved little since the chunk was collected: a lag of 1 or 2 steps, which the clip pays for with signal.
Degenerate  one epoch with one minibatch at lag 0 is the advantage actor-critic.
Named       u is against the policy that really acted (recorded log-probs), so stale chunks are corrected as far as the clip
            allows. `whiten` normalises advantages in each minibatch. `clip_value` keeps V within `clip` of V_old, as CleanRL
            does.
State       none.

Shapes: B rows of a minibatch, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy
from freerun.ops import surrogate, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    gamma: float = 0.99
    """Discount."""
    decay: float = 0.95
    """GAE's lambda: 0 trusts the value, 1 the rewards."""
    clip: float = 0.2
    """How far the ratio may move before its gradient stops."""
    entropy: float = 0.0
    """Weight of the entropy."""
    lr: float = 3e-4
    """Learning rate of the policy."""
    value_lr: float = 3e-4
    """Learning rate of the value."""
    whiten: bool = True
    """Normalise advantages in each minibatch."""
    clip_value: bool = False
    """Clip the value's change as the ratio's."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of both networks."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        check(self, rules | {"clip > 0": self.clip > 0, "entropy >= 0": self.entropy >= 0})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden, activation="tanh", init="orthogonal")
        old_values = {"values"} if self.clip_value else set()
        return ControlAlgorithm(
            name="ppo",
            networks={
                "actor": Policy(body=body, squash=False, state_std=False),
                "value": Ensemble(reads=("obs",), body=body),
            },
            terms=(
                Term(name="policy", loss=partial(policy_loss, config=self), trains=("actor",), lr=self.lr),
                Term(name="value", loss=partial(value_loss, config=self), trains=("value",), lr=self.value_lr),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "log_prob", "advantage", "returns"} | old_values),
            gamma=self.gamma,
            consumes="rollout",
            prepare=partial(prepare, config=self),
            uses=frozenset({"obs", "next_obs", "reward", "terminated", "truncated"}),
            makes=frozenset({"advantage", "returns", "values"}),
        )


def prepare(networks: Networks, batch: Batch, state: State, *, config: Config) -> Mapping[str, Tensor]:
    credit = surrogate.credited(networks["value"], batch, gamma=config.gamma, decay=config.decay)
    return {"advantage": credit.advantage_TN, "returns": credit.returns_TN, "values": credit.value_TN}


def policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    policy = networks["actor"](batch["obs"])
    advantage_B = values.whitened(batch["advantage"]) if config.whiten else batch["advantage"]
    rows = batch["action"], batch["log_prob"], advantage_B
    return Loss(*surrogate.clipped(policy, *rows, clip=config.clip, entropy=config.entropy))


def value_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    value_B, returns_B = networks["value"](batch["obs"])[0], batch["returns"].detach()
    error_B = (value_B - returns_B).square()
    if config.clip_value:
        old_B = batch["values"].detach()
        near_B = old_B + (value_B - old_B).clamp(-config.clip, config.clip)
        error_B = torch.maximum(error_B, (near_B - returns_B).square())
    return Loss(error_B, {"value": value_B})
