"""A transformer small enough to train from random weights on a CPU, with a tokenizer of single characters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from freerun.errors import ConfigError, DataError
from freerun.models.base import LanguageModel, resolve_dtype
from freerun.types import Message

PAD, EOS, NUM_SPECIAL = 0, 1, 2


class CharTokenizer:
    """One token per character of `alphabet`, after the ids of padding (0) and end of sequence (1)."""

    def __init__(self, alphabet: str) -> None:
        self._id_of = {character: i for i, character in enumerate(alphabet, NUM_SPECIAL)}
        self._alphabet = alphabet

    @property
    def num_tokens(self) -> int:
        return NUM_SPECIAL + len(self._alphabet)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added. Raises `DataError` naming the first character that is not in the alphabet."""
        unknown = next((c for c in text if c not in self._id_of), None)
        if unknown is not None:
            raise DataError(
                f"character {unknown!r} is not in the model's alphabet",
                given=repr(text),
                expected=f"characters of {self._alphabet!r}",
                todo="add the character to model.alphabet, or choose a task that does not use it",
            )
        return [self._id_of[c] for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, padding and end of sequence left out."""
        return "".join(self._alphabet[t - NUM_SPECIAL] for t in tokens if t >= NUM_SPECIAL)

    def encode_chat(self, turns: Sequence[Message]) -> list[int]:
        """A character model knows no chat: raises `DataError`."""
        raise DataError(
            "this model takes raw text, and the task gives chat turns",
            given=f"{len(turns)} turns, the first by '{turns[0].role}'" if turns else "no turns",
            expected="a prompt that is a string",
            todo="set the task's prompt style to raw, or use a model with a chat template",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A Llama-like model with random weights; the defaults give one million parameters."""

    layers: int = 4
    """Transformer layers."""
    width: int = 128
    """Size of the hidden state; the feed-forward layer is four times as wide."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Heads of keys and values."""
    context: int = 64
    """Most tokens of prompt and response together."""
    alphabet: str = "0123456789+-*=,>abcdefghijklmnopqrstuvwxyz "
    """The characters it reads and writes, each one once."""
    weights: str = ""
    """A safetensors file with the weights to begin with, such as a checkpoint's `policy.safetensors`; empty: random ones."""

    def build(self, *, dtype: str = "auto", device: str = "cpu", seed: int = 0) -> LanguageModel:
        """Random weights that depend on `seed` alone; torch's own random state is as before.

        Raises `ConfigError` for sizes that do not divide and for an alphabet that repeats a character, `DataError` for weights
        that are missing or belong to a model of other sizes.
        """
        self._check()
        tokenizer = CharTokenizer(self.alphabet)
        sizes = LlamaConfig(
            vocab_size=tokenizer.num_tokens,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_implementation="sdpa",
        )
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would reseed CUDA generators that `fork_rng(devices=[])` does not restore.
            torch.random.default_generator.manual_seed(seed)
            model = LlamaForCausalLM(sizes)
        if self.weights:
            self._load(model)
        model = model.to(device=device, dtype=resolve_dtype(dtype, device)).eval()
        return LanguageModel(model=model, tokenizer=tokenizer, context=self.context, eos=frozenset({EOS}), pad=PAD)

    def _load(self, model: LlamaForCausalLM) -> None:
        try:
            model.load_state_dict(load_file(self.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataError(
                "the weights of the tiny model cannot be read",
                given=f"{self.weights}: {error}",
                expected="a safetensors file with the weights of a model of these sizes",
                todo="correct model.weights, or the sizes",
            ) from error

    def _check(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError(
                "the heads of the tiny model do not fit its width",
                given=f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}",
                expected="an even width per head, and heads that are a multiple of kv_heads",
                todo="change model.width, model.heads or model.kv_heads",
            )
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise ConfigError(
                "the alphabet of the tiny model must list each character once",
                given=repr(self.alphabet),
                expected="at least one character, none of them twice",
                todo="correct model.alphabet",
            )
