"""The algorithm contract: an algorithm is data.

A method is one file that defines a frozen `Config` with a `build()` returning an `Algorithm`: a credit function, loss terms,
and the names of the batch columns they read. A recipe imports the module and calls it. There is no registry.

Shapes: G trajectories of a group, B of a batch, T action tokens of the longest.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

from torch import Tensor

from freerun.errors import ConfigError
from freerun.ops.reduce import Reduction
from freerun.types import Batch, Group, Metric

State = Mapping[str, Any]
"""Explicit algorithm state (baselines, bounds, schedules): JSON-able numbers and tensors, checkpointed with the trainer,
replaced and never mutated."""

Outputs = Mapping[str, Tensor]
"""What the networks give for a batch, with gradient: `logp` [B, T] always, `entropy` [B, T] and `values` [B, T] where a term
names them in `outputs`. `values` are those of the states in which the tokens were chosen."""


@dataclass(frozen=True, slots=True)
class LossOut:
    """Element-wise loss, already weighted and gated but not reduced, in the shape of the term's mask; metrics are sums and
    counts, so that they merge over micro-batches."""

    loss: Tensor
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class LossFunction(Protocol):
    """Pure: reads current outputs, batch and state, changes nothing, averages nothing."""

    def __call__(self, outputs: Outputs, batch: Batch, state: State, /) -> LossOut: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One loss: what it trains, how it is reduced, and how often.

    `trains` names networks ("policy", "value", ...); `mask` is the boolean column over which the loss is reduced; `weight`
    scales the term; `every` is its cadence in optimiser steps; `outputs` are the network outputs that it reads.
    """

    name: str
    loss: LossFunction
    trains: tuple[str, ...] = ("policy",)
    outputs: tuple[str, ...] = ("logp",)
    reduction: Reduction = Reduction.TOKEN_MEAN
    mask: str = "mask"
    weight: float = 1.0
    every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A slowly following copy of a network: `target += rate * (online - target)` every `every` optimiser steps."""

    online: str
    target: str
    rate: float
    every: int = 1


class CreditFunction(Protocol):
    """Group to advantages. Returns [G] (the same credit for every token of a trajectory) or [G, T], and the next state."""

    def __call__(self, group: Group, state: State, /) -> tuple[Tensor, State]: ...


class Prepare(Protocol):
    """Columns of a whole step, made or replaced from other columns of the whole step, once and before its first gradient: what
    a group alone cannot say (whitening over the batch), or needs a network's values (GAE). Pure; rows are trajectories."""

    def __call__(self, batch: Batch, state: State, /) -> Mapping[str, Tensor]: ...


class Probe(Protocol):
    """The state for the next optimiser step, from its whole minibatch and from what the networks give for it now, without
    gradient. Pure. It costs a forward pass."""

    def __call__(self, outputs: Outputs, batch: Batch, state: State, /) -> State: ...


def _no_state() -> State:
    return {}


def _never(state: State) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """A method as data.

    name       shown in records and errors
    credit     group to advantages, pure
    terms      losses, in the order in which they are applied
    needs      batch columns that the terms read; checked at start-up and again at every read
    group_baseline   True if `credit` compares siblings, so that a group of one carries no signal
    advantage_gates  True if every loss and its gradient is 0 where the advantage, after `prepare`, is 0: the trainer may then
               count such trajectories in the denominators without computing them
    reinforce_on_policy   True if at equal policies the gradient of the first term is that of REINFORCE on the column
               `advantage`, as it is after `prepare`
    targets    pairs of online and target networks
    init       the initial state
    events     named moments ("batch_start", "optimizer_step", "iteration_end") to pure state updates
    prepare    columns that take the whole step to make: `makes` are their names, `uses` those of the columns that it reads
    probe      the state for one optimiser step, from a look at its minibatch
    rebase     after each step: whether the reference policy becomes a copy of the policy as it is now
    forget_moments   whether every step begins with an optimiser that has no history
    fresh_only   whether from this step on replayed items are left out, and a batch is passed over once
    routing    in a mixture of experts, whose choice of experts is replayed: that of the generator when it sampled ("rollout"),
               that of the trainer at the start of the update ("update"), or nobody's ("free")
    """

    name: str
    credit: CreditFunction
    terms: tuple[Term, ...]
    needs: frozenset[str]
    group_baseline: bool = False
    advantage_gates: bool = False
    reinforce_on_policy: bool = True
    targets: tuple[Target, ...] = ()
    init: Callable[[], State] = _no_state
    events: Mapping[str, Callable[[State, Mapping[str, Metric]], State]] = field(default_factory=dict)
    prepare: Prepare | None = None
    uses: frozenset[str] = frozenset()
    makes: frozenset[str] = frozenset()
    probe: Probe | None = None
    rebase: Callable[[State], bool] = _never
    forget_moments: bool = False
    fresh_only: Callable[[State], bool] = _never
    routing: Literal["free", "update", "rollout"] = "free"

    @property
    def columns(self) -> frozenset[str]:
        """Every column that somebody has to give: what terms, reductions and `prepare` read, but for what `prepare` adds."""
        reduced = {name for term in self.terms for name in (term.mask, *term.reduction.columns)}
        return (self.needs | reduced) - (self.makes - self.uses) | self.uses

    @property
    def has_critic(self) -> bool:
        """Whether a value network belongs to the method."""
        return any("value" in term.trains for term in self.terms)


class AlgorithmConfig(Protocol):
    """What a recipe holds: a frozen dataclass in the algorithm's own file that builds the record."""

    def build(self) -> Algorithm: ...


def check(config: Any, rules: Mapping[str, bool]) -> None:
    """Refuse a config, when it is made, that breaks one of `rules` (the rule in words, and whether it holds) or that holds a
    value which the `Literal` or enum type of its field does not list. Raises `ConfigError`."""
    values, listed = asdict(config), {}
    for name, kind in get_type_hints(type(config)).items():
        choices = get_args(kind) if get_origin(kind) is Literal else tuple(kind) if isinstance(kind, enum.EnumType) else ()
        if choices:
            listed[f"{name} is one of {', '.join(choices)}"] = values[name] in choices
    for rule, holds in {**rules, **listed}.items():
        if not holds:
            raise ConfigError(
                f"{type(config).__module__} does not work with this config",
                given=values,
                expected=rule,
                todo="correct the algorithm's config in the recipe",
            )
