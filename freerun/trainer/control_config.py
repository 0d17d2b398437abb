"""What the trainer of control can be told. Nothing heavy is imported, so reading it is cheap."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from freerun.config import demand
from freerun.datasets.base import EpisodesConfig
from freerun.errors import ConfigError
from freerun.store.selectors import SelectorConfig, Uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """A storage that actors fill."""

    name: str = "replay"
    """Named in the portions of a phase."""
    capacity: int = 1_000_000
    """Transitions that fit; then the oldest go."""
    sampler: SelectorConfig = field(default_factory=Uniform)
    """Which rows come next: Uniform, Recency or Prioritised."""
    correction: float = 0.4
    """With Prioritised: how much of the bias the weights undo, 0 to 1."""
    steps: int = 1
    """Steps of a target: 3 is three-step returns."""
    mapped: bool = False
    """Keep the rows in memory-mapped files of the run directory, for what does not fit into memory."""

    def __post_init__(self) -> None:
        rules = {"capacity, steps >= 1": min(self.capacity, self.steps) >= 1, "0 <= correction <= 1": 0 <= self.correction <= 1}
        demand(self, "a replay storage cannot be like this", rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A storage that is filled once, from recorded episodes."""

    data: EpisodesConfig
    """Where they come from."""
    name: str = "dataset"
    """Named in the portions of a phase."""
    sampler: SelectorConfig = field(default_factory=Uniform)
    """Which rows come next."""
    correction: float = 0.4
    """With Prioritised: how much of the bias the weights undo, 0 to 1."""
    steps: int = 1
    """Steps of a target."""
    best_share: float = 1.0
    """Keep only this share of the episodes, those with the highest returns."""

    def __post_init__(self) -> None:
        rules = {
            "steps >= 1": self.steps >= 1,
            "0 <= correction <= 1": 0 <= self.correction <= 1,
            "0 < best_share <= 1": 0 < self.best_share <= 1,
        }
        demand(self, "a data set cannot be read like this", rules)


SourceConfig: TypeAlias = ReplayConfig | DatasetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTrainerConfig:
    """Batches, optimiser (AdamW), normalisation. Learning rates are the algorithm's own."""

    batch: int = 256
    """Rows of an update that samples; of all sources together."""
    epochs: int = 1
    """Where terms read rollouts: passes over the chunks of a step."""
    minibatches: int = 1
    """Where terms read rollouts: updates per pass."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: float = 1e-8
    """Added to the root of the second."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 0.0
    """Largest L2 norm of a term's gradient; 0 does not clip."""
    schedule: Literal["constant", "linear"] = "constant"
    """Learning rates over the run: constant, or falling to 0."""
    observations: Literal["raw", "data", "running"] = "raw"
    """How networks see observations: as they are; by mean and deviation of the data set; or of all that was collected so
    far."""
    rewards: Literal["raw", "range", "running"] = "raw"
    """Scale of rewards: as they are; 1000 over the range of the data set's returns; or one over the running deviation of
    discounted returns."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, before the rest."""
    reward_shift: float = 0.0
    """Added after that."""
    device: str = "cpu"
    """Where networks are."""
    max_lag: int | None = None
    """Refuse rollouts older than this, which admission makes impossible; none does not check. The run sets it."""
    max_age: int | None = None
    """The same for rows of replay. The run sets it."""
    seed: int = 0
    """Seed of initial weights, sampling and noise. The run sets it."""

    def __post_init__(self) -> None:
        rules = {
            "batch, epochs and minibatches >= 1": min(self.batch, self.epochs, self.minibatches) >= 1,
            "0 <= betas < 1": all(0 <= beta < 1 for beta in self.betas),
            "eps > 0": self.eps > 0,
            "weight_decay, clip_norm >= 0": min(self.weight_decay, self.clip_norm) >= 0,
            "schedule is constant or linear": self.schedule in ("constant", "linear"),
            "observations are raw, data or running": self.observations in ("raw", "data", "running"),
            "rewards are raw, range or running": self.rewards in ("raw", "range", "running"),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(
                    "the trainer does not work with this config",
                    given=self,
                    expected=rule,
                    todo="correct the trainer's config in the recipe, or --trainer.NAME on the command line",
                )
