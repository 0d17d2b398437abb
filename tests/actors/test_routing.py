"""What the generator records of a mixture of experts: where each token went, whoever it shared a pass, a slot or a prompt with.

Shapes: L routers, T positions of a trajectory, k experts per token.
"""

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from freerun.actors.native import NativeEngine
from freerun.actors.paths import layers, verified
from freerun.models.routing import Routers
from freerun.types import CachePolicy
from tests.actors.conftest import EOS, decode, encode, finish, request

LONG = "the quick brown fox jumps over "
ORDERS = [
    request(0, "ab", 3, seed=1),
    request(1, LONG + "a dog", 2, seed=2, max_tokens=25),
    request(2, LONG + "the cat", 4, seed=3, max_tokens=5),
    request(3, "zzzz", 1, seed=4, max_tokens=1),
    request(4, LONG + "a dog", 1, seed=5, temperature=0.5),
]


def mixture(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = Qwen3MoeConfig(
            vocab_size=64,
            hidden_size=32,
            moe_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=EOS,
        )
        return Qwen3MoeForCausalLM(sizes).eval()


def engine_of(model, *, slots=8, routing=True, **options):
    return NativeEngine(
        model,
        verified(model, routing=routing),
        num_layers=layers(model),
        encode=encode,
        decode=decode,
        eos=frozenset({EOS}),
        slots=slots,
        max_context=96,
        **options,
    )


@torch.no_grad()
def routing_of(model, tokens_T):
    """Where a plain forward over the whole sequence sends each token."""
    with Routers(model).recording() as expert_Nk:
        model(tokens_T[None], use_cache=False)
    return torch.stack(expert_Nk).to(torch.int16)


@pytest.mark.parametrize(
    "options",
    [{"slots": 1}, {"slots": 3}, {"slots": 32}, {"slots": 5, "share_prefix": False}, {"slots": 32, "prefill_tokens": 7}],
    ids=str,
)
def test_the_recorded_routing_is_that_of_a_full_forward(options):
    done, plain = finish(engine_of(mixture(), **options), *ORDERS), mixture()
    assert len(done) == 11
    for trajectory in done.values():
        routing_LTk = trajectory.routing_LTk
        assert routing_LTk.dtype is torch.int16
        assert routing_LTk.shape == (2, len(trajectory.tokens_T), 2)
        assert torch.equal(routing_LTk[:, :-1], routing_of(plain, trajectory.tokens_T)[:, :-1])
        assert bool((routing_LTk[:, -1] == -1).all())


@pytest.mark.parametrize("policy", [CachePolicy.KEEP, CachePolicy.RECOMPUTE])
def test_after_a_swap_routing_is_kept_or_recomputed_with_the_keys_and_values(policy):
    """The prompt's tokens went through the first layer's router of the old weights, and again through the new if recomputed."""
    old, new, engine = mixture(3), mixture(4), engine_of(mixture(3), slots=2)
    engine.load(1, {n: p.detach().clone() for n, p in old.named_parameters()}, policy)
    engine.submit(request(0, "some prompt", 2, min_p=0.05, max_tokens=12))
    done = {f.sample: f.outcome for _ in range(5) for f in engine.step()}
    engine.load(2, {n: p.detach().clone() for n, p in new.named_parameters()}, policy)
    done |= {sample: trajectory for (_, sample), trajectory in finish(engine).items()}
    for trajectory in done.values():
        known = len("some prompt") + 4
        expected = routing_of(new if policy is CachePolicy.RECOMPUTE else old, trajectory.tokens_T)
        assert torch.equal(trajectory.routing_LTk[:, :known], expected[:, :known])


def test_nothing_is_recorded_unless_it_is_asked_for():
    done = finish(engine_of(mixture(), routing=False), *ORDERS)
    assert all(trajectory.routing_LTk is None for trajectory in done.values())
