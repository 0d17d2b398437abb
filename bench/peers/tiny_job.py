"""The job that every system of this folder runs: the same model, tokenizer, prompts, reward and delays.

A transformer of 0.3 million parameters in the shape of Qwen3, a tokenizer of 19 words (one character each), prompts such as
`3+4=`, and the share of digits among 8 sampled tokens as the reward, which a random model gets about half right. The job asks
nothing of the model, so what is measured is the system around it. It needs torch, transformers and tokenizers, nothing of ours.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHARACTERS = "0123456789+-*=?"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
COMPLETION_TOKENS = 8
PROMPTS_PER_STEP = 8
SAMPLES_PER_PROMPT = 8
LEARNING_RATE = 1e-3
GOAL = 0.8
"""Mean reward of a step that counts as learned, by three steps in a row."""


def model(seed: int) -> Qwen3ForCausalLM:
    """Random weights, float32. Every token may end a response only where the system says so: generation stops by length."""
    torch.manual_seed(seed)
    words = len(SPECIAL) + len(CHARACTERS)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=words,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL.index("<pad>"),
            bos_token_id=SPECIAL.index("<bos>"),
            eos_token_id=SPECIAL.index("<eos>"),
            dtype="float32",
        )
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One character, one token."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *CHARACTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", model_max_length=64, **names)


QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
"""Arguments of any of TRL's configs, with which nothing is saved or told to anybody."""


def trl_settings(out: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """The job as arguments of TRL's `GRPOConfig`. Nothing is saved."""
    return {
        "output_dir": str(out),
        **QUIET,
        "max_steps": steps,
        "per_device_train_batch_size": PROMPTS_PER_STEP * SAMPLES_PER_PROMPT,
        "num_generations": SAMPLES_PER_PROMPT,
        "max_completion_length": COMPLETION_TOKENS,
        "temperature": 1.0,
        "beta": 0.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "activation_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "seed": seed,
    }


def save(folder: Path, seed: int) -> None:
    """Write model and tokenizer where a system can load them as it would any other checkpoint."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def prompts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"{draw.randrange(10)}+{draw.randrange(10)}=" for _ in range(count)]


def numbered(count: int) -> list[str]:
    """Prompts of which no two are alike."""
    return [f"{number:04d}+{number % 10}=" for number in range(count)]


def reward(completion: str) -> float:
    """Share of digits among the sampled tokens. `completion` is the text without special tokens, which are no digits."""
    return sum(character.isdigit() for character in completion) / COMPLETION_TOKENS


@dataclass(frozen=True)
class Delay:
    """What a slow verifier costs: a lognormal number of seconds per sample, slept by whoever computes the reward.

    `median` 0 is none. `sigma` is the standard deviation of the logarithm; the mean is `median * exp(sigma**2 / 2)`. The delay
    of a sample depends on `seed` and its number only, so every system sleeps the same sequence.
    """

    median: float = 0.0
    sigma: float = 0.0
    seed: int = 0

    def seconds(self, sample: int) -> float:
        if self.median == 0.0:
            return 0.0
        return self.median * random.Random(self.seed * 1_000_003 + sample).lognormvariate(0.0, self.sigma)


class Clock:
    """Time and mean reward of each step, and the figures of the comparison: rates leave the first steps out."""

    WARM_UP = 5

    def __init__(self) -> None:
        self._began = 0.0
        self.steps: list[tuple[float, float]] = []

    def start(self) -> None:
        """Everything is loaded; the first step begins."""
        self._began = time.perf_counter()

    def step(self, rewards: Sequence[float]) -> None:
        """A step ended; its samples had these rewards."""
        self.steps.append((time.perf_counter() - self._began, sum(rewards) / len(rewards)))

    def figures(self) -> dict[str, object]:
        """Samples and tokens per second after the warm-up, seconds until the goal (None: not reached), and every step."""
        num_samples = PROMPTS_PER_STEP * SAMPLES_PER_PROMPT
        counted = self.steps[self.WARM_UP - 1 :]
        rate = (len(counted) - 1) * num_samples / (counted[-1][0] - counted[0][0]) if len(counted) > 1 else None
        good = [t for i, (t, _) in enumerate(self.steps) if i >= 2 and all(r >= GOAL for _, r in self.steps[i - 2 : i + 1])]
        return {
            "samples_per_second": rate,
            "tokens_per_second": rate and rate * COMPLETION_TOKENS,
            "seconds_to_goal": good[0] if good else None,
            "goal": GOAL,
            "first_reward": self.steps[0][1] if self.steps else None,
            "last_reward": self.steps[-1][1] if self.steps else None,
            "steps": [{"seconds": round(t, 4), "reward": round(r, 4)} for t, r in self.steps],
        }
