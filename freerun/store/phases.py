"""Phases of a control run: how much is collected and learned in each, from which sources, and what is switched meanwhile.

Offline, warm-up and online are three phases with different numbers:

>>> offline = Phase(name="offline", updates=10_000, sources=(Portion(source="dataset"),))
>>> warm_up = Phase(name="warm-up", env_steps=5_000, utd=0.0, act="greedy")
>>> online = Phase(name="online", env_steps=50_000, utd=4.0)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from freerun.errors import ConfigError
from freerun.store.mix import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """A source's part of every batch."""

    source: str
    """Name of the source."""
    share: Share = field(default_factory=lambda: Share(1.0))
    """Its share, relative to the others'; it may move along a line over updates of the phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run. Raises `ConfigError` if nothing would happen in it."""

    name: str = "online"
    """Shown in records."""
    env_steps: int = 0
    """Environment steps that actors take, rounded up to whole chunks; 0 has no actors."""
    updates: int = 0
    """Without actors: gradient updates."""
    utd: float = 1.0
    """With actors and replay: updates per environment step; 0 only collects."""
    utd_most: float = 0.0
    """With actors and replay: updates per environment step that the trainer may make where it would have to wait for slow
    environments; what is below `utd` means no more than that."""
    start: int = 0
    """Environment steps of the phase before its first update; they are not made up for."""
    random: int = 0
    """Environment steps of the phase whose actions are uniformly random."""
    act: Literal["explore", "greedy", "random"] = "explore"
    """How actors act after those."""
    sources: tuple[Portion, ...] = ()
    """What a batch is made of; none named: all sources of the run in equal parts, and without actors its data sets, if it has
    any. Where terms read rollouts, what comes beside them."""
    spell: int = 0
    """Updates in a row whose rows all come from one source, drawn in proportion to the shares; 0 mixes within every batch."""
    off: tuple[str, ...] = ()
    """Terms and reviews that are left out."""
    frozen: tuple[str, ...] = ()
    """Networks that no term trains."""
    every: Mapping[str, int] = field(default_factory=dict)
    """Updates per update of a term, by its name, where that is another number than the algorithm's own."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the algorithm's state that are set at the start of the phase."""
    fresh: tuple[str, ...] = ()
    """Networks whose optimisers begin anew."""

    def __post_init__(self) -> None:
        rules = {
            "env_steps or updates": bool(self.env_steps) != bool(self.updates),
            "no negative number": min(
                self.env_steps, self.updates, self.utd, self.utd_most, self.start, self.random, self.spell
            )
            >= 0,
            "start < env_steps, or no updates": self.start < self.env_steps or not self.utd or not self.env_steps,
            "utd above 0, for more than that": self.utd > 0 or not self.utd_most,
            "every >= 1": min(self.every.values(), default=1) >= 1,
            "sources of different names": len({p.source for p in self.sources}) == len(self.sources),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"phase '{self.name}' cannot be", given=self, expected=rule, todo="correct the recipe")

    @property
    def shares(self) -> dict[str, Share]:
        return {portion.source: portion.share for portion in self.sources}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the trainer does for one step of a control run.

    `phase` is the index of the phase; `updates` the number of gradient updates (where terms read rollouts it is decided by the
    epochs and minibatches); `done` the share of the run's work that lies behind; `first` the key of the oldest chunk that
    replay may draw from.
    """

    phase: int = 0
    updates: int = 0
    done: float = 0.0
    first: int = 0
