"""What the trainer can be told. Nothing heavy is imported, so reading it is cheap."""

import math
from dataclasses import dataclass
from typing import Literal

from freerun.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) in place of full weights; the optimiser then holds only the adapters.

    Generators receive ordinary merged weights, so that nothing else needs to know.
    """

    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 32.0
    """Scale: an adapter adds alpha / rank times its product."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueHeadConfig:
    """The head that estimates the reward to expect on a prompt, and how it is fitted."""

    heads: int = 8
    """Attention heads; they divide the width of the model."""
    max_value: float = 1.0
    """Largest reward; the smallest is 0."""
    lr: float = 1e-3
    """Learning rate of the fit (AdamW)."""

    def __post_init__(self) -> None:
        for rule, holds in {"heads >= 1": self.heads >= 1, "max_value, lr > 0": min(self.max_value, self.lr) > 0}.items():
            if not holds:
                raise ConfigError(
                    "the value head does not work with this config",
                    given=self,
                    expected=rule,
                    todo="correct reference_value.head in the recipe",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Optimiser (AdamW), precision, packing, and how many optimiser steps a batch is used for.

    Raises `ConfigError` when it is made with values that cannot work.
    """

    lr: float = 1e-5
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    clip_norm: float = 1.0
    """Largest L2 norm of a gradient; 0 does not clip."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up."""
    schedule_steps: int = 0
    """Optimiser step at which a linear or cosine schedule has reached `final_lr`."""
    final_lr: float = 0.0
    """Learning rate at the end of the schedule, as a share of `lr`."""
    minibatches: int = 1
    """Optimiser steps per pass over a batch; above 1 the batch is complete before the first."""
    epochs: int = 1
    """Passes over a batch."""
    micro_tokens: int = 1024
    """Most tokens in one forward pass; a longer trajectory gets a pass of its own. Attention costs their square."""
    packing: Literal["tree", "rows"] = "tree"
    """`tree` computes a prefix that trajectories share once; `rows` pads, for models that cannot take an attention mask."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products run in, by autocast over float32 weights. `auto`: bfloat16 where the hardware has it."""
    device: str = "cpu"
    """Where the networks are: "cpu", "cuda", "cuda:1"."""
    checkpoint_activations: bool = False
    """Recompute the activations of each layer in the backward pass: less memory, about a third more time."""
    logit_megabytes: int = 256
    """Memory for logits: they are made for as many positions at a time as fit."""
    lora: LoraConfig | None = None
    """Train adapters in place of all weights."""
    critic_lr_share: float = 1.0
    """Learning rate of the critic, where the algorithm has one, as a multiple of the policy's."""
    temperature: float = 1.0
    """Temperature under which log-probs are taken; it must be that of sampling."""
    max_lag: int | None = None
    """Refuse tokens older than this, which admission makes impossible; none does not check."""
    max_age: int | None = None
    """The same for items that are replayed."""
    seed: int = 0
    """Seed of initial weights, adapters and the order of minibatches."""

    def __post_init__(self) -> None:
        rules = {
            "lr > 0": self.lr > 0,
            "0 <= betas < 1": all(0 <= beta < 1 for beta in self.betas),
            "weight_decay, clip_norm, warmup_steps and final_lr >= 0": min(
                self.weight_decay, self.clip_norm, self.warmup_steps, self.final_lr
            )
            >= 0,
            "schedule_steps > warmup_steps, for a schedule that ends": self.schedule == "constant"
            or self.schedule_steps > self.warmup_steps,
            "minibatches, epochs, micro_tokens and logit_megabytes >= 1": min(
                self.minibatches, self.epochs, self.micro_tokens, self.logit_megabytes
            )
            >= 1,
            "temperature > 0": self.temperature > 0,
            "critic_lr_share > 0": self.critic_lr_share > 0,
            "max_lag, max_age >= 0": min(self.max_lag or 0, self.max_age or 0) >= 0,
            "schedule is constant, linear or cosine": self.schedule in ("constant", "linear", "cosine"),
            "packing is tree or rows": self.packing in ("tree", "rows"),
            "dtype is auto, float32 or bfloat16": self.dtype in ("auto", "float32", "bfloat16"),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(
                    "the trainer does not work with this config",
                    given=self,
                    expected=rule,
                    todo="correct the trainer's config in the recipe, or --trainer.NAME on the command line",
                )

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup_steps) / (self.schedule_steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * (self.final_lr + (1.0 - self.final_lr) * left)
