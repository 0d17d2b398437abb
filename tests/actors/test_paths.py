"""Which models run, by which forward, and what is said about those that cannot."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from freerun.actors.forward import HuggingFaceForward
from freerun.actors.llama import LlamaForward
from freerun.actors.paths import difference, layers, verified
from freerun.errors import ConfigError
from freerun.types import Sampling
from tests.actors.conftest import engine_of, finish, recomputed, request

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}

FAST = [
    LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    LlamaConfig(
        **SIZES,
        max_position_embeddings=512,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    MistralConfig(**SIZES, sliding_window=6),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=16),
]
GENERIC = [
    GPT2Config(**GPT),
    Gemma2Config(**SIZES, head_dim=16, sliding_window=6, query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
    GptOssConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=6),
    DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=32,
    ),
]
UNSUPPORTED = [
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None),
    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, bos_token_id=None, eos_token_id=None, pad_token_id=None),
]


def named(config: PreTrainedConfig) -> str:
    return config.model_type


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights, large enough that a wrong position or a forgotten token shows."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def test_a_soft_cap_is_kept_where_the_compiled_kernel_would_apply() -> None:
    config = Gemma2Config(**SIZES, head_dim=64, sliding_window=6, query_pre_attn_scalar=16, attn_logit_softcapping=2.0)
    model = model_of(config)
    done = finish(engine_of(copy.deepcopy(model)), request(0, "two words", 3), request(1, "ab", 2))
    for trajectory in done.values():
        logp_A = trajectory.logp_T[trajectory.action_T]
        torch.testing.assert_close(logp_A, recomputed(model, trajectory, Sampling()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", FAST, ids=named)
def test_both_forwards_give_the_models_own_log_probs(config: PreTrainedConfig) -> None:
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    for kind in (LlamaForward, HuggingFaceForward):
        model = model_of(config)
        with torch.inference_mode():
            reference = model(torch.tensor([tokens]), use_cache=False).logits[0]
            forward = verified(model, fast=kind is LlamaForward)
            assert type(forward) is kind
            assert difference(forward, layers(model), reference, tokens) < 1e-4


@pytest.mark.parametrize("config", GENERIC, ids=named)
def test_other_models_run_through_their_own_modules(config: PreTrainedConfig) -> None:
    model = model_of(config)
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        reference = model(torch.tensor([tokens]), use_cache=False).logits[0]
        forward = verified(model)
        assert isinstance(forward, HuggingFaceForward)
        assert difference(forward, layers(model), reference, tokens) < 1e-4


@pytest.mark.parametrize("config", UNSUPPORTED, ids=named)
def test_a_model_that_keeps_more_than_keys_and_values_is_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ConfigError, match="cannot run this model") as caught:
        verified(model_of(config))
    assert type(model_of(config)).__name__ in caught.value.given
    assert "vLLM" in caught.value.todo


def test_a_model_whose_log_probs_are_not_finite_is_refused() -> None:
    model = model_of(LlamaConfig(**SIZES))
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="cannot run this model"):
        verified(model)
