"""PROPS: PPO on the last few batches, collected by a policy of its own that picks what on-policy sampling has missed.

Paper       On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling (arXiv 2311.08290).
Estimator   PPO's, as if all batches had been drawn from the policy: the data are to look on-policy, whoever drew them.
Equation    policy, value: as in ppo, u = pi(a|s) / pi_start(a|s), with values, advantages and pi_start of this update
            behaviour: max(w, clip(w, 1 - behaviour_clip, 1 + behaviour_clip)) + penalty KL(pi || phi),   w = phi(a|s) / pi(a|s)
            on all that is kept, phi beginning as pi: what is there already becomes less likely, until KL(pi || phi) is above
            `behaviour_kl`
Assumption  the batches that are kept cover the states that the policy visits now.
Degenerate  batches = 1 with no epoch of the behaviour is PPO.
Named       `adapt` off collects with the policy itself: PPO on a buffer. `penalty` is the paper's; the authors' code leaves it
            out (0). `behaviour` losses other than ROS's, one step without a clip, are not offered.
            A step is one chunk. The behaviour is updated in each, the policy in every `batch_steps`th. GAE runs over all of
            what is kept, where the authors' covers the newest rows only.
State       none.

Shapes: B rows of a minibatch, T steps of a chunk, N environments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, Stage, State, Term, act_by_sampling, check
from freerun.networks import Body, Ensemble, Network, Policy
from freerun.ops import losses, natural, surrogate, values
from freerun.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    batches: int = 2
    """Batches that are kept."""
    batch_steps: int = 64
    """Chunks of a batch: the policy is updated after so many."""
    adapt: bool = True
    """Collect with the behaviour policy."""
    behaviour_lr: float = 1e-3
    """Learning rate of the behaviour policy."""
    behaviour_epochs: int = 4
    """Passes over what is kept, for each chunk."""
    behaviour_minibatches: int = 4
    """Updates per pass."""
    behaviour_clip: float = 0.3
    """How far the ratio of the behaviour may fall before its gradient stops."""
    behaviour_kl: float = 0.03
    """KL from the policy above which the behaviour is left as it is."""
    penalty: float = 0.1
    """Weight of that KL."""
    epochs: int = 10
    """Passes of the policy over what is kept."""
    minibatches: int = 8
    """Updates per pass."""
    max_kl: float = 0.03
    """KL from the policy at the start of an update above which the update ends."""
    gamma: float = 0.99
    """Discount."""
    decay: float = 0.95
    """GAE's lambda."""
    clip: float = 0.2
    """How far the ratio may move before its gradient stops."""
    entropy: float = 0.0
    """Weight of the entropy."""
    lr: float = 1e-3
    """Learning rate of policy and value."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of every network."""

    def __post_init__(self) -> None:
        rules = {"0 <= gamma <= 1": 0 <= self.gamma <= 1, "0 <= decay <= 1": 0 <= self.decay <= 1}
        rules |= {"clip, behaviour_clip > 0": min(self.clip, self.behaviour_clip) > 0}
        rules |= {"entropy, penalty >= 0": min(self.entropy, self.penalty) >= 0}
        least = min(self.batches, self.batch_steps, self.epochs, self.minibatches)
        rules |= {"batches, batch_steps, epochs, minibatches >= 1": least >= 1}
        least = min(self.behaviour_epochs, self.behaviour_minibatches)
        check(self, rules | {"behaviour_epochs, behaviour_minibatches >= 1": least >= 1})

    def build(self) -> ControlAlgorithm:
        body = Body(hidden=self.hidden, activation="tanh", init="orthogonal")
        actor = Policy(body=body, squash=False, state_std=False)
        policy = partial(policy_loss, config=self)
        terms = [
            Term(name="policy", loss=policy, trains=("actor",), lr=self.lr, until=("kl/behaviour", self.max_kl)),
            Term(name="value", loss=value_loss, trains=("value",), lr=self.lr),
        ]
        learn = Stage(terms=("policy", "value"), every=self.batch_steps, epochs=self.epochs, minibatches=self.minibatches)
        stages, networks = [learn], dict[str, Network](actor=actor, value=Ensemble(reads=("obs",), body=body))
        if self.adapt:
            networks["behaviour"] = actor
            loss, until = partial(behaviour_loss, config=self), ("kl_policy", self.behaviour_kl)
            terms.append(Term(name="behaviour", loss=loss, trains=("behaviour",), lr=self.behaviour_lr, until=until))
            epochs, minibatches = self.behaviour_epochs, self.behaviour_minibatches
            copies = {"behaviour": "actor"}
            stages.append(Stage(terms=("behaviour",), epochs=epochs, minibatches=minibatches, copies=copies))
        return ControlAlgorithm(
            name="props",
            networks=networks,
            terms=tuple(terms),
            act=act_by_sampling("behaviour", judged="actor") if self.adapt else act_by_sampling("actor"),
            acts_with=("actor", "behaviour") if self.adapt else ("actor",),
            needs=frozenset({"obs", "action", "log_prob_start", "advantage", "returns"}),
            gamma=self.gamma,
            consumes="rollout",
            prepare=partial(prepare, config=self),
            uses=frozenset({"obs", "next_obs", "action", "reward", "terminated", "truncated"}),
            makes=frozenset({"advantage", "returns", "log_prob_start"}),
            stages=tuple(stages),
            recall=self.batches * self.batch_steps,
        )


def prepare(networks: Networks, batch: Batch, state: State, *, config: Config) -> Mapping[str, Tensor]:
    credit = surrogate.credited(networks["value"], batch, gamma=config.gamma, decay=config.decay)
    logp_TN = networks["actor"](batch["obs"]).log_prob(batch["action"])
    return {"advantage": credit.advantage_TN, "returns": credit.returns_TN, "log_prob_start": logp_TN}


def policy_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    rows = batch["action"], batch["log_prob_start"], values.whitened(batch["advantage"])
    return Loss(*surrogate.clipped(networks["actor"](batch["obs"]), *rows, clip=config.clip, entropy=config.entropy))


def value_loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    value_B = networks["value"](batch["obs"])[0]
    return Loss((value_B - batch["returns"].detach()).square(), {"value": value_B})


def behaviour_loss(networks: Networks, batch: Batch, state: State, generator: Generator, *, config: Config) -> Loss:
    """The policy stands still meanwhile, so its log-probs at the start are those of now."""
    behaviour, policy = networks["behaviour"](batch["obs"]), networks["actor"](batch["obs"])
    log_ratio_B = losses.log_ratio(behaviour.log_prob(batch["action"]), batch["log_prob_start"])
    clip = config.behaviour_clip
    less_B, clipped_B = losses.clipped_surrogate(log_ratio_B, -torch.ones_like(log_ratio_B), low=clip, high=clip)
    far_B = natural.divergence(policy, behaviour)
    return Loss(less_B + config.penalty * far_B, {"kl_policy": far_B, "behaviour_clipped": clipped_B})
