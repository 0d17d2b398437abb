"""What a recipe returns: one typed, frozen config for a whole run. `freerun run NAME` finds it by its file name.

A recipe is a module in this folder (or any Python file) with a function `recipe() -> RunConfig` whose module docstring says
what it shows and how long it takes. Nothing is registered: the folder is the list.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from freerun import discovery, recipes
from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.base import AlgorithmConfig
from freerun.config import demand
from freerun.errors import ConfigError
from freerun.models.base import ModelConfig
from freerun.rewards.pool import RewardConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import examples
from freerun.tasks.base import TaskConfig
from freerun.tasks.examples import ExamplesConfig
from freerun.trainer.config import ValueHeadConfig
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """Where the executors run."""

    kind: Literal["auto", "inline", "monarch"] = "auto"
    """`monarch`: each executor in a process of its own; `inline`: all in this process; `auto`: monarch where it is
    installed."""
    schedule: Literal["threads", "serial"] = "threads"
    """Inline only: `threads` overlaps executors, `serial` runs one call at a time in a deterministic order. After a crash a
    serial run makes again what was finished since its checkpoint, and so comes out bit for bit as if it had not crashed."""
    record: bool = False
    """Write the order in which calls complete to `interleaving.jsonl` in the run directory."""
    replay: str = ""
    """Inline only: follow the order in this `interleaving.jsonl`, bit for bit."""
    preload: bool = False
    """Monarch on processors only: fork executors from a process that has imported everything, so that they start, and replace
    dead ones, in a fraction of a second and share that memory."""
    generators: int = 1
    """Number of generator executors."""
    threads: int = 0
    """Torch threads of each generator and of the trainer; 0 shares the cores evenly, at least one each."""
    pin: bool = True
    """Give executors that share a CPU disjoint cores."""

    def __post_init__(self) -> None:
        rules = {"generators >= 1": self.generators >= 1, "threads >= 0": self.threads >= 0}
        demand(self, "executors cannot be placed like this", rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """How versions travel from the trainer to the generators."""

    transport: Literal["auto", "inprocess", "shared", "monarch"] = "auto"
    """`auto`: in-process when inline, shared memory between processes of this host."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the published weights; `auto` is the generator's."""
    verify: bool = False
    """Checksum every version and verify it at adoption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartConfig:
    """A supervised stage on demonstrations before RL."""

    algorithm: AlgorithmConfig
    """The supervised objective."""
    examples: ExamplesConfig = field(default_factory=examples.Solutions)
    """Where the demonstrations come from."""
    steps: int = 200
    """Optimiser steps."""
    batch: int = 64
    """Demonstrations per step."""
    lr: float = 1e-3
    """Learning rate of this stage."""
    warmup_steps: int = 0
    """Steps over which it rises to that."""
    hold: float = 0.0
    """Share of the steps that keep it; over the others it falls linearly to 0."""

    def __post_init__(self) -> None:
        rules = {
            "steps, batch >= 1": min(self.steps, self.batch) >= 1,
            "lr, warmup_steps >= 0": min(self.lr, self.warmup_steps) >= 0,
        }
        demand(self, "a supervised stage cannot go like this", rules)
        if not 0.0 <= self.hold <= 1.0:
            raise ConfigError(
                "the warm start cannot keep its learning rate for such a share of its steps",
                given=f"hold {self.hold}",
                expected="0 to 1",
                todo="correct --warm-start.hold",
            )

    def learning_rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        risen = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = 1 - step / self.steps
        return self.lr * risen * (min(1.0, left / (1 - self.hold)) if self.hold < 1 else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValueConfig:
    """A stage before RL that fits the reward to expect of the reference policy on a prompt: the column `value_reference`."""

    examples: ExamplesConfig | None = None
    """Scored responses to fit it to, which stand for the reference policy's own; none takes those of `offline`."""
    head: ValueHeadConfig = field(default_factory=ValueHeadConfig)
    """The estimator."""
    epochs: int = 10
    """Passes over the prompts; the best on those held back counts."""
    batch: int = 64
    """Prompts per step."""
    held_back: float = 0.2
    """Share of the prompts to judge by."""
    select: Literal["all", "positive", "priority"] = "positive"
    """Which responses of `offline` are trained on: every one, those better than expected, or those drawn in proportion to how
    much better they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsConfig:
    """What the run leaves behind."""

    directory: str = "runs"
    """Parent of the run directories."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run directory."""
    wandb: str = ""
    """Weights & Biases project to log to; empty is off."""

    def __post_init__(self) -> None:
        demand(self, "a run cannot be recorded like this", {"keep_checkpoints >= 1": self.keep_checkpoints >= 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run."""

    model: ModelConfig
    """The policy: the network and its tokenizer."""
    task: TaskConfig
    """Prompts and reward."""
    algorithm: AlgorithmConfig
    """The objective."""
    sampling: Sampling
    """How training responses are drawn."""
    control: ControllerConfig = field(default_factory=ControllerConfig)
    """How long, how much per step, how asynchronous."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The token generator."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The reward pool."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Optimiser, packing, precision."""
    offline: ExamplesConfig | None = None
    """A data set to train on in place of what generators make; they then only answer evaluations."""
    experts: ExamplesConfig | None = None
    """Where the demonstrations come from that `control.experts` adds to each step."""
    warm_start: WarmStartConfig | None = None
    """A supervised stage before RL, or none."""
    reference_value: ReferenceValueConfig | None = None
    """A stage after it that fits the value of prompts, or none."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Where executors run."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """How weights travel."""
    records: RecordsConfig = field(default_factory=RecordsConfig)
    """What is written."""
    seed: int = 0
    """Seed of everything: data order, sampling, initial weights."""


NOT_RECIPES = ("base", "control_base")
"""Modules of the folder that say what a recipe is."""


def names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return discovery.names(recipes, "recipe")


def load(name: str) -> ModuleType:
    """The module of a shipped recipe (`tiny-addition`) or of a Python file (`my_recipe.py`). Raises `ConfigError`."""
    return discovery.load(recipes, "recipe", name, listing="freerun list", example="freerun/recipes/tiny_addition.py")


def described() -> Iterator[tuple[str, str]]:
    """(name, first paragraph of the docstring) of every shipped recipe."""
    for name in names():
        yield name, " ".join((load(name).__doc__ or "").strip().split("\n\n")[0].split())
