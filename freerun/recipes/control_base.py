"""What a recipe of control returns: one typed, frozen config for a whole run."""

from dataclasses import dataclass, field
from typing import Literal

from freerun.actors.environment import ActorConfig, EnvConfig
from freerun.algorithms.control_base import ControlConfig
from freerun.config import demand
from freerun.env_schedule import EnvSchedule
from freerun.errors import ConfigError
from freerun.recipes.base import PlacementConfig, RecordsConfig, WeightsConfig
from freerun.store import rounds
from freerun.trainer.control_config import ControlTrainerConfig, SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A client of a federation."""

    env: EnvConfig
    """Its environment, with the spaces of all."""
    importance: float = 1.0
    """How much it counts, relative to the others."""
    seconds: float = 0.0
    """How long a piece of its work takes: about, and at least, since it waits out what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Clients that collect and train on their own, and a server that adds up what that changed. An order of a chunk is a piece
    of work: `control.chunk` steps of each environment, and the updates that these make due, in a single phase."""

    clients: tuple[ClientConfig, ...]
    """The clients; `ControlRun.actors` does not count them."""
    scheme: rounds.Config = field(default_factory=rounds.Synchronous)
    """When the server adds up: Synchronous (FedAvg), Arrivals (asynchronous FedAvg, FedBuff) or Interval (FedFix)."""
    lr: float = 1.0
    """Step of the server; smaller ones suit schemes whose rounds are short."""
    weights: Literal["rate", "equal"] = "rate"
    """`rate`: importance over how often a client takes part, which leaves no bias; `equal`: the same for all, so that the fast
    count more."""

    def __post_init__(self) -> None:
        timed = self.weights == "equal" or isinstance(self.scheme, rounds.Synchronous)
        rules = {
            "at least one client": bool(self.clients),
            "importances above 0": all(client.importance > 0 for client in self.clients),
            "seconds of every client, for weights that go by them": timed or all(c.seconds > 0 for c in self.clients),
            "lr > 0": self.lr > 0,
            "weights are rate or equal": self.weights in ("rate", "equal"),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError("a federation cannot be like this", given=self, expected=rule, todo="correct the recipe")

    @property
    def shares(self) -> list[float]:
        """The weight of each client's change. On average a round adds them up to 1."""
        seconds = [client.seconds or 1.0 for client in self.clients]
        total = sum(client.importance for client in self.clients)
        if self.weights == "equal":
            return [1.0 / sum(self.scheme.rates(seconds))] * len(self.clients)
        return rounds.weights(self.scheme, [client.importance / total for client in self.clients], seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRun:
    """A whole control run."""

    env: EnvConfig
    """The environment: a config whose `build` gives one."""
    algorithm: ControlConfig
    """The method."""
    control: EnvSchedule
    """Phases, and how far collecting and learning may run ahead of each other."""
    sources: tuple[SourceConfig, ...] = ()
    """Storages: replay that actors fill, data sets."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """How actors run their environments."""
    actors: int = 1
    """Number of actors that collect; one more judges."""
    trainer: ControlTrainerConfig = field(default_factory=ControlTrainerConfig)
    """Batches, optimiser, normalisation."""
    federation: Federation | None = None
    """Clients that train too, in place of actors."""
    judge_env: EnvConfig | None = None
    """Where policies are judged, if not in `env`: the real thing, where actors learn in a simulator."""
    scores: tuple[float, float] | None = None
    """Returns of a random and of an expert policy, for normalised scores."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Where executors run."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """How weights travel."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """What is written."""
    seed: int = 0
    """Seed of everything: episodes, exploration, sampling, initial weights."""

    def __post_init__(self) -> None:
        names, phases = [source.name for source in self.sources], self.control.phases
        unknown = sorted({portion.source for phase in phases for portion in phase.sources} - set(names))
        demand(
            self,
            "a control run cannot be like this",
            {
                "actors >= 1": self.actors >= 1,
                "sources of different names": len(set(names)) == len(names),
                f"sources for what phases draw from: {', '.join(unknown)}": not unknown,
                "scores of which the second is higher": self.scores is None or self.scores[0] < self.scores[1],
            },
        )
