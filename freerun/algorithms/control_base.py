"""The contract of a control method: an algorithm is data, here as for language (`base.py`).

A method is one file that defines a frozen `Config` with a `build()` returning a `ControlAlgorithm`: networks by name, loss
terms, targets, how to act, and the names of the columns that are read. A recipe imports the module and calls it.

What differs from language, and why. A language algorithm has one network, several micro-batches per optimiser step, and
losses that are added up; so its term reads *outputs* that the trainer computed. A control algorithm has several small networks,
trained one after the other within an update, and its losses call them at states and actions of their own choice. So a term
here gets the networks themselves and says which of them it trains.

Shapes: B rows of a batch, T steps of a chunk, N environments.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from freerun.algorithms.base import State, Target, check
from freerun.errors import ConfigError
from freerun.networks import Network
from freerun.ops import distributions
from freerun.transitions import Mode, Spaces
from freerun.types import Batch, Metric

__all__ = [
    "Ask",
    "ControlAlgorithm",
    "ControlConfig",
    "Lookahead",
    "Loss",
    "Natural",
    "Networks",
    "Review",
    "Reviewed",
    "Stage",
    "State",
    "Target",
    "Term",
    "act_by_sampling",
    "act_with_noise",
    "check",
    "no_state",
]

Networks = Mapping[str, Any]
"""Networks by name, targets included; each is called as its description in `networks` says."""


class Loss(NamedTuple):
    """What a term gives.

    loss       of each row of its batch, [B], not averaged
    watch      quantities of any shape, of which the trainer reports means, when it reports
    surprise   how far off each row was, [B], not negative: what prioritised sampling goes by, from the one term that knows
    """

    loss: Tensor
    watch: Mapping[str, Tensor] = {}
    surprise: Tensor | None = None


class LossFunction(Protocol):
    """Pure: reads networks, batch and state, draws noise from the generator only, changes nothing, averages nothing."""

    def __call__(self, networks: Networks, batch: Batch, state: State, generator: Generator, /) -> Loss: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Natural:
    """How a term moves its networks along the natural gradient, in place of Adam. `divergence` [B] is how far the policy has
    moved at each row from that of a target which the algorithm keeps as it was before the step; it has no gradient there. The
    step keeps its mean within `radius`, is found by so many `iterations` of conjugate gradients on its Hessian plus `damping`,
    and halved up to so many times until the loss has fallen. Its term needs no learning rate."""

    divergence: Callable[[Networks, Batch], Tensor]
    radius: float = 0.01
    damping: float = 0.1
    iterations: int = 10
    halvings: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One loss and its gradient step. The gradient is taken with respect to the networks in `trains` and no others, so a loss
    need not detach them; targets have no gradient in any case.

    `lr` is the learning rate, or one for each of them; `every` the cadence in updates; `source` restricts the batch to the rows
    of one source ("": all). Each network has one optimiser, which the terms that train it share. A term that `joins` the one
    before it, which trains the same, makes no step of its own: the losses are added, and one step follows. `until` names a
    watched quantity and a bound: an update in which its mean is above that is the last one of its stage.
    """

    name: str
    loss: LossFunction
    trains: tuple[str, ...]
    lr: float | Mapping[str, float]
    every: int = 1
    source: str = ""
    joins: bool = False
    natural: Natural | None = None
    until: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a step on rollouts, in every so many steps: these `terms` (none named: all) over all rows, in so many epochs of
    so many minibatches (0: as the trainer is told). Before it, networks become `copies` of others and their optimisers begin
    anew, and `prepare` is called."""

    terms: tuple[str, ...] = ()
    every: int = 1
    epochs: int = 0
    minibatches: int = 0
    copies: Mapping[str, str] = field(default_factory=dict)


class Reviewed(NamedTuple):
    """What a review comes to: the next state, and networks that take over the weights of others, as `{taker: giver}`."""

    state: State
    takes: Mapping[str, str] = {}


class ReviewFunction(Protocol):
    """Pure, without gradient; `batch` are the rows of the update, for whatever states it wants to look from."""

    def __call__(self, networks: Networks, batch: Batch, state: State, generator: Generator, /) -> Reviewed: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A look at the networks: before the first update of a phase, and after every so many. Left out of phases like a term."""

    name: str
    look: ReviewFunction
    every: int


class Ask(NamedTuple):
    """What an actor wants: a `mode` ("explore" or "greedy") after `taken` environment steps of the run, in these spaces."""

    mode: Mode
    taken: int
    spaces: Spaces


class Act(Protocol):
    """Pure: columns of a step for observations [N, ...], at least `action` and its `log_prob` under the policy that really
    chose it. Needs only the networks in `acts_with`."""

    def __call__(self, networks: Networks, obs: Tensor, ask: Ask, generator: Generator, /) -> Mapping[str, Tensor]: ...


class Prepare(Protocol):
    """Columns of a whole step of chunks [T, N, ...], made once, before its first update, with the networks as they are then:
    values, advantages. Pure, without gradient."""

    def __call__(self, networks: Networks, batch: Batch, state: State, /) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookahead(Target):
    """A target to which its network returns: once the target has moved, the network becomes a copy of it. With `every` K these
    are K updates and one step towards what they led to (Reptile, arXiv 1803.02999; Lookahead, arXiv 1907.08610)."""


def no_state() -> State:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAlgorithm:
    """A method as data.

    name       shown in records and errors
    networks   descriptions by name; those of targets are copies and not listed
    terms      losses, in the order in which they are applied within an update
    act        how an actor chooses, with the networks in `acts_with`, which are what is published
    needs      columns that the terms read; checked before the first update and again at every read
    targets    pairs of online and target networks; a target is applied every so many updates, after the terms
    reviews    looks at the networks that may change the state and let networks take over the weights of others
    gamma      discount of values; samplers make `reward`, `discount`, `mc_return` with it
    actions    what kind of actions it is for
    consumes   "replay": terms read rows that a storage samples; "rollout": they read the chunks of the step, each row once per
               epoch, and chunks are then bounded in lag like groups of language
    prepare    columns made of whole chunks: `makes` are their names, `uses` those of the columns that it reads
    stages     what a step on rollouts consists of, in order; none named: one stage of all terms
    recall     steps whose chunks a step on rollouts reads: 1 is its own
    init       the initial state
    events     named moments ("phase_start", "update", "iteration_end") to pure state updates; metrics are those of the moment
    """

    name: str
    networks: Mapping[str, Network]
    terms: tuple[Term, ...]
    act: Act
    acts_with: tuple[str, ...]
    needs: frozenset[str]
    targets: tuple[Target, ...] = ()
    reviews: tuple[Review, ...] = ()
    gamma: float = 0.99
    actions: Literal["any", "continuous", "discrete"] = "any"
    consumes: Literal["replay", "rollout"] = "replay"
    prepare: Prepare | None = None
    uses: frozenset[str] = frozenset()
    makes: frozenset[str] = frozenset()
    stages: tuple[Stage, ...] = ()
    recall: int = 1
    init: Callable[[], State] = no_state
    events: Mapping[str, Callable[[State, Mapping[str, Metric]], State]] = field(default_factory=dict)

    @property
    def columns(self) -> frozenset[str]:
        """Every column that somebody has to give: what terms and `prepare` read, but for what `prepare` makes."""
        return (self.needs - (self.makes - self.uses)) | self.uses

    def check(self, spaces: Spaces) -> None:
        """Raises `ConfigError` for actions that the method is not for, and for names of networks that it does not have."""
        kind = "discrete" if spaces.discrete else "continuous"
        if self.actions not in ("any", kind):
            raise ConfigError(
                f"algorithm '{self.name}' is not for {kind} actions",
                given=f"an environment with {kind} actions",
                expected=f"{self.actions} actions",
                todo="use another environment or another algorithm",
            )
        targets = {target.target for target in self.targets}
        named = {n for term in self.terms for n in term.trains} | {t.online for t in self.targets} | set(self.acts_with)
        named |= {name for stage in self.stages for pair in stage.copies.items() for name in pair}
        if unknown := sorted((named - set(self.networks) - targets) | (targets & set(self.networks))):
            raise ConfigError(
                f"algorithm '{self.name}' names networks wrongly: {', '.join(unknown)}",
                given=unknown,
                expected=f"some of {', '.join(self.networks)}, and targets with names of their own",
                todo="correct the record in the algorithm's build()",
            )


# --- usual ways to act -------------------------------------------------------------------------------------------------------


def act_by_sampling(policy: str, *, judged: str = "") -> Act:
    """Explore by sampling the distribution that network `policy` gives; be judged by its mode, or by that of `judged`."""
    return partial(_sample, policy=policy, judged=judged or policy)


def act_with_noise(policy: str, std: float) -> Act:
    """Explore by normal noise on the action that network `policy` gives; be judged without."""
    return partial(_add_noise, policy=policy, std=std)


def _sample(
    networks: Networks, obs: Tensor, ask: Ask, generator: Generator, *, policy: str, judged: str
) -> Mapping[str, Tensor]:
    if ask.mode == "greedy":
        return greedily(networks[judged](obs).mode)
    action, logp_N = networks[policy](obs).sample(generator)
    return {"action": action, "log_prob": logp_N}


def _add_noise(
    networks: Networks, obs: Tensor, ask: Ask, generator: Generator, *, policy: str, std: float
) -> Mapping[str, Tensor]:
    action_NA = networks[policy](obs)
    if ask.mode == "greedy" or not std:
        return greedily(action_NA)
    action_NA, logp_N = distributions.gaussian_noise(action_NA, std, generator)
    return {"action": action_NA, "log_prob": logp_N}


def greedily(action: Tensor) -> Mapping[str, Tensor]:
    """An action without chance: a discrete one had probability 1, a continuous one has no density."""
    num = action.shape[0]
    return {"action": action, "log_prob": torch.full((num,), 0.0 if action.dim() == 1 else math.nan, device=action.device)}


class ControlConfig(Protocol):
    """What a recipe holds: a frozen dataclass in the method's own file that builds the record."""

    def build(self) -> ControlAlgorithm: ...
