"""A mixture of experts small enough to train from random weights on a CPU, with the tokenizer of `tiny_lm`."""

from dataclasses import dataclass

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from freerun.errors import ConfigError
from freerun.models.base import LanguageModel, resolve_dtype
from freerun.models.tiny_lm import EOS, PAD, CharTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A Qwen3-like mixture of experts with random weights, every layer of which has experts."""

    layers: int = 2
    """Transformer layers."""
    width: int = 64
    """Size of the hidden state; each expert is twice as wide."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Heads of keys and values."""
    experts: int = 8
    """Experts in each layer."""
    active: int = 2
    """Experts that a token goes to."""
    context: int = 64
    """Most tokens of prompt and response together."""
    alphabet: str = "0123456789+-*=,>abcdefghijklmnopqrstuvwxyz "
    """The characters it reads and writes, each one once."""

    def build(self, *, dtype: str = "auto", device: str = "cpu", seed: int = 0) -> LanguageModel:
        """Random weights that depend on `seed` alone; torch's own random state is as before.

        Raises `ConfigError` for sizes that do not divide, and for more active experts than there are.
        """
        self._check()
        tokenizer = CharTokenizer(self.alphabet)
        sizes = Qwen3MoeConfig(
            vocab_size=tokenizer.num_tokens,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            moe_intermediate_size=2 * self.width,
            num_experts=self.experts,
            num_experts_per_tok=self.active,
            norm_topk_prob=True,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.width // self.heads,
            max_position_embeddings=self.context,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_implementation="sdpa",
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            model = Qwen3MoeForCausalLM(sizes)
        model = model.to(device=device, dtype=resolve_dtype(dtype, device)).eval()
        return LanguageModel(model=model, tokenizer=tokenizer, context=self.context, eos=frozenset({EOS}), pad=PAD)

    def _check(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise ConfigError(
                "the heads of the tiny model do not fit its width",
                given=f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}",
                expected="an even width per head, and heads that are a multiple of kv_heads",
                todo="change model.width, model.heads or model.kv_heads",
            )
        if not 1 <= self.active <= self.experts:
            raise ConfigError(
                "the experts of the tiny model cannot be chosen like this",
                given=f"experts {self.experts}, active {self.active}",
                expected="1 <= active <= experts",
                todo="change model.experts or model.active",
            )
