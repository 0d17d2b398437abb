"""What every language model of a run offers: a causal network, its text interface and its limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from freerun.errors import ConfigError, DataError
from freerun.types import Message, Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` with what the model expects in front (a BOS token, where it has one) and nothing behind."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        ...

    def encode_chat(self, turns: Sequence[Message]) -> list[int]:
        """Ids of `turns` as the chat template renders them, up to where the assistant begins to speak. Raises `DataError` if
        there is no template, or if it refuses these turns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model in evaluation mode with the tokenizer that belongs to it.

    `context` is the most tokens of prompt and response together. `eos` holds every token that ends a response. `pad` fills
    unused positions; nothing is ever recognised as padding by its id.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    context: int
    eos: frozenset[int]
    pad: int

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: raw text as it is, chat turns through the chat template. Raises `DataError` if there are none,
        because the first token of a response is predicted from the last one of its prompt."""
        content = prompt.content
        tokens = self.tokenizer.encode(content) if isinstance(content, str) else self.tokenizer.encode_chat(content)
        if not tokens:
            raise DataError(
                f"prompt '{prompt.uid}' has no tokens",
                given=repr(prompt.content),
                expected="at least one token to predict from",
                todo="correct the dataset",
            )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        return self.tokenizer.decode(tokens)


class ModelConfig(Protocol):
    """A frozen, picklable description that builds the same model in every process."""

    def build(self, *, dtype: str = "auto", device: str = "cpu", seed: int = 0) -> LanguageModel:
        """`dtype` and `device` as in `resolve_dtype`; `seed` decides random initial weights, where there are any."""
        ...


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype that `name` means on `device`. "auto" is bfloat16 where the hardware multiplies it natively, else
    float32: on a CPU without such instructions bfloat16 products are several times slower than float32 ones.

    Raises `ConfigError` for another name and for a CUDA device that is not there.
    """
    cuda = torch.device(device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError(
            f"device '{device}' is not there",
            given=device,
            expected="a device that torch can see (torch.cuda.is_available() is False)",
            todo="use device cpu, or install a CUDA build of torch and a driver",
        )
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_multiplies_bfloat16()
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise ConfigError(
            f"unknown dtype '{name}'", given=name, expected=f"auto, {', '.join(DTYPES)}", todo="name one of the expected types"
        )
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
