"""The native engine on CUDA, with our kernels and as graphs, says what the same model says on a CPU."""

import copy

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from freerun.actors.gpu_llama import GpuLlamaForward
from freerun.actors.native import NativeEngine
from freerun.ops.sampling import drawn
from freerun.types import CachePolicy, Sampling
from tests.actors.conftest import engine_of, finish, random_model, recomputed, request, responses
from tests.actors.test_paths import SIZES, model_of, named

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CONFIGS = [
    LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    MistralConfig(**SIZES, sliding_window=6),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=16),
    Gemma2Config(**SIZES, head_dim=16, sliding_window=6, query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
]
WORK = [request(0, "two words", 5, seed=1), request(1, "ab", 3, seed=2, temperature=0.7), request(2, "a long one it is", 4)]


@pytest.mark.parametrize("fast", [True, False], ids=["short", "generic"])
@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_log_probs_are_those_of_the_plain_forward(config: PreTrainedConfig, fast: bool) -> None:
    model = model_of(config)
    done = finish(engine_of(copy.deepcopy(model).cuda(), slots=4, fast=fast), *WORK)
    for (item, _), trajectory in done.items():
        logp_A = trajectory.logp_T[trajectory.action_T]
        expected_A = recomputed(model, trajectory, WORK[item].sampling)
        torch.testing.assert_close(logp_A, expected_A, rtol=0, atol=1e-4)


def eager_engine(model: torch.nn.Module) -> NativeEngine:
    """As `engine_of`, but every kernel is launched by itself, and so is what draws."""
    engine = engine_of(model, forward=GpuLlamaForward(model, graphs=False))
    engine._drawn = drawn
    return engine


def test_graphs_and_single_launches_give_the_same_tokens() -> None:
    model = random_model().cuda()
    assert responses(finish(engine_of(model), *WORK)) == responses(finish(eager_engine(model), *WORK))


def test_top_p_and_greedy_settings_give_the_tokens_of_the_cpu() -> None:
    work = [request(0, "two words", 3, top_p=0.8), request(1, "ab", 2, temperature=0.0), request(2, "abc", 2, min_p=0.1)]
    model = random_model()
    assert responses(finish(engine_of(copy.deepcopy(model).cuda()), *work)) == responses(finish(engine_of(model), *work))


def test_graphs_read_the_weights_of_the_newest_version() -> None:
    one, other = random_model(0).cuda(), random_model(1).cuda()
    engine = engine_of(one)
    before = responses(finish(engine, *WORK))
    engine.load(1, dict(other.named_parameters()), CachePolicy.KEEP)
    after = responses(finish(engine, *WORK))
    assert after == responses(finish(engine_of(random_model(1).cuda()), *WORK)) != before


def test_responses_outgrow_the_slots_that_graphs_were_made_for() -> None:
    model = random_model()
    work = request(0, "ab", 3, max_tokens=90)
    done = finish(engine_of(copy.deepcopy(model).cuda()), request(1, "abc", 2, max_tokens=4), work)
    for trajectory in done.values():
        logp_A = trajectory.logp_T[trajectory.action_T]
        torch.testing.assert_close(logp_A, recomputed(model, trajectory, Sampling()), rtol=0, atol=1e-4)
