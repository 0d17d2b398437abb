"""PPO with imitation: recorded episodes are imitated before PPO, in between its steps, or both.

Paper       Using Offline Data to Speed-up Reinforcement Learning in Procedurally Generated Environments (arXiv 2304.09825);
            imitation between steps as in RAPID (arXiv 2101.08152).
Estimator   PPO's, and the gradient of the negative log-likelihood of the demonstrations, each with steps of its own.
Equation    policy, value: as in ppo
            imitation: -weight log pi(a|s) on demonstrations, `times` updates after each step of PPO
Assumption  demonstrations come from many levels; how good they are matters less.
Degenerate  times = 0 is PPO.
Named       before: a phase without actors whose `off` are the terms "policy" and "value". In between: `times`. RAPID has
            five updates of 256 rows after each episode, makes them rarer with time, and ranks a buffer into which the agent's
            own episodes come; here demonstrations stay as they are, and each step of PPO is followed by as many updates.
State       none.

Shapes: B rows of a minibatch, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, Stage, State, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Policy
from freerun.ops import surrogate, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    source: str = "dataset"
    """Source of the demonstrations."""
    times: int = 5
    """Updates on demonstrations after each step of PPO."""
    weight: float = 1.0
    """Weight of their loss."""
    gamma: float = 0.99
    """Discount."""
    decay: float = 0.95
    """GAE's lambda."""
    clip: float = 0.2
    """How far the ratio may move before its gradient stops."""
    entropy: float = 0.01
    """Weight of the entropy."""
    lr: float = 1e-4
    """Learning rate."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of both networks, behind convolutions where observations are images."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        rules |= {"clip > 0": self.clip > 0, "times, weight, entropy >= 0": min(self.times, self.weight, self.entropy) >= 0}
        check(self, rules)

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden, activation="tanh", init="orthogonal")
        policy, imitation = partial(policy_loss, config=self), partial(imitation_loss, config=self)
        between = Stage(terms=("imitation",), epochs=self.times, minibatches=1)
        return ControlAlgorithm(
            name="ppo_imitation",
            networks={
                "actor": Policy(body=body, squash=False, state_std=False),
                "value": Ensemble(reads=("obs",), body=body),
            },
            terms=(
                Term(name="policy", loss=policy, trains=("actor",), lr=self.lr, source="rollout"),
                Term(name="value", loss=value_loss, trains=("value",), lr=self.lr, source="rollout"),
                Term(name="imitation", loss=imitation, trains=("actor",), lr=self.lr, source=self.source),
            ),
            act=act_by_sampling("actor"),
            acts_with=("actor",),
            needs=frozenset({"obs", "action", "log_prob", "advantage", "returns"}),
            gamma=self.gamma,
            consumes="rollout",
            prepare=partial(prepare, config=self),
            uses=frozenset({"obs", "next_obs", "reward", "terminated", "truncated"}),
            makes=frozenset({"advantage", "returns"}),
            stages=(Stage(terms=("policy", "value")), *([between] if self.times else [])),
        )


def prepare(networks: Networks, batch: Batch, state: State, *, config: Config) -> Mapping[str, Tensor]:
    credit = surrogate.credited(networks["value"], batch, gamma=config.gamma, decay=config.decay)
    return {"advantage": credit.advantage_TN, "returns": credit.returns_TN}


def policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    rows = batch["action"], batch["log_prob"], values.whitened(batch["advantage"])
    return Loss(*surrogate.clipped(networks["actor"](batch["obs"]), *rows, clip=config.clip, entropy=config.entropy))


def value_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    value_B = networks["value"](batch["obs"])[0]
    return Loss((value_B - batch["returns"].detach()).square(), {"value": value_B})


def imitation_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    logp_B = networks["actor"](batch["obs"]).log_prob(batch["action"])
    return Loss(-config.weight * logp_B, {"logp_demonstrations": logp_B})
