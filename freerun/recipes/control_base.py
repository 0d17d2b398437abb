"""What a recipe of control returns: one typed, frozen config for a whole run."""

from dataclasses import dataclass, field

from freerun.actors.environment import ActorConfig, EnvConfig
from freerun.algorithms.control_base import ControlConfig
from freerun.env_schedule import EnvSchedule
from freerun.recipes.base import PlacementConfig, RecordsConfig, WeightsConfig
from freerun.trainer.control_config import ControlTrainerConfig, SourceConfig


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
