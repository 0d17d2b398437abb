"""Routing replay: the same experts again, or other ones, with the gates of the router as it is.

Shapes: L routers, N tokens of a pass, C hidden width, E experts, k experts per token, V vocabulary.
"""

import copy

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from freerun.errors import ConfigError
from freerun.models import tiny_moe
from freerun.models.routing import Routers

COMMON = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MODELS = {
    "qwen3": lambda layers: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            num_experts=6, moe_intermediate_size=24, norm_topk_prob=True, head_dim=8, num_hidden_layers=layers, **COMMON
        )
    ),
    "mixtral": lambda layers: MixtralForCausalLM(MixtralConfig(num_local_experts=6, num_hidden_layers=layers, **COMMON)),
    "olmoe": lambda layers: OlmoeForCausalLM(OlmoeConfig(num_experts=6, num_hidden_layers=layers, **COMMON)),
}
TOKENS = torch.tensor([[3, 9, 27, 17, 5, 15, 13], [2, 4, 8, 16, 30, 28, 24]])


def random_model(kind, layers=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind](layers).double().eval()
    # Its grouped products do not take float64.
    model.set_experts_implementation("eager")
    return model


def logits_of(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def test_recording_changes_nothing_and_a_replay_of_it_is_the_same_to_the_bit(kind):
    model = random_model(kind)
    routers = Routers(model)
    with torch.no_grad():
        plain = logits_of(model)
        with routers.recording() as expert_Nk:
            recorded = logits_of(model)
        with routers.replaying(torch.stack(expert_Nk)):
            replayed = logits_of(model)
        after = logits_of(model)
    assert [tuple(e.shape) for e in expert_Nk] == [(14, 2), (14, 2)]
    assert len(torch.stack(expert_Nk).unique()) > 2
    for other in (recorded, replayed, after):
        assert torch.equal(other, plain)


def other_experts(routers, model):
    with torch.no_grad(), routers.recording() as expert_Nk:
        logits_of(model)
    return (torch.stack(expert_Nk) + 1) % 6


def by_hand(model, kind, expert_Nk):
    """Logits [N, V] of a model of one layer whose tokens go to `expert_Nk`: `g_i = exp(s_i) / sum over the chosen of exp(s_j)`
    (for OLMoE, over all experts), written out expert by expert."""
    layer, seen = model.model.layers[0], {}
    hook = layer.post_attention_layernorm.register_forward_hook(lambda m, a, out: seen.update(x=out, residual=a[0]))
    with torch.no_grad():
        logits_of(model)
    hook.remove()
    x_NC, residual_NC = seen["x"].flatten(0, 1), seen["residual"].flatten(0, 1)
    experts, out_NC = layer.mlp.experts, []
    score_NE = x_NC @ layer.mlp.gate.weight.T
    for n, x_C in enumerate(x_NC):
        chosen = expert_Nk[n]
        total = score_NE[n].exp().sum() if kind == "olmoe" else score_NE[n, chosen].exp().sum()
        mixed = 0
        for e in chosen:
            gate, up = (experts.gate_up_proj[e] @ x_C).chunk(2)
            mixed = mixed + score_NE[n, e].exp() / total * (experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
        out_NC.append(mixed)
    return model.lm_head(model.model.norm(residual_NC + torch.stack(out_NC)))


def test_another_routing_gives_the_log_probs_worked_out_by_hand(kind):
    model = random_model(kind, layers=1)
    routers = Routers(model)
    expert_LNk = other_experts(routers, model)
    with torch.no_grad(), routers.replaying(expert_LNk):
        replayed = logits_of(model).flatten(0, 1)
    with torch.no_grad():
        expected = by_hand(model, kind, expert_LNk[0])
        plain = logits_of(model).flatten(0, 1)
    # Gates are softmaxes of float32 in the model.
    torch.testing.assert_close(replayed.log_softmax(-1), expected.log_softmax(-1), rtol=1e-5, atol=1e-5)
    assert (replayed.log_softmax(-1) - plain.log_softmax(-1)).abs().max() > 0.1


def test_gradients_reach_the_scores_of_the_chosen_experts_and_no_others(kind):
    """Against the gradient of the hand-written layer; where gates are normalised over the chosen, a router's row of an expert
    that nobody was sent to has none."""
    model = random_model(kind, layers=1)
    routers = Routers(model)
    expert_LNk = other_experts(routers, model).clamp(max=3)
    expert_LNk[..., 1] = (expert_LNk[..., 0] + 1) % 4
    weight = model.model.layers[0].mlp.gate.weight
    direction = torch.linspace(-1, 1, 32, dtype=torch.float64)
    with routers.replaying(expert_LNk):
        (found,) = torch.autograd.grad((logits_of(model).flatten(0, 1) @ direction).sum(), weight)
    (expected,) = torch.autograd.grad((by_hand(model, kind, expert_LNk[0]) @ direction).sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert bool((found[:4].abs().sum(-1) > 1e-6).all())
    assert bool((found[4:].abs() > 1e-6).any()) == (kind == "olmoe")


def test_the_gradient_of_a_replay_is_a_finite_difference_while_the_router_would_choose_otherwise():
    model = random_model("qwen3", layers=2)
    routers = Routers(model)
    expert_LNk = other_experts(routers, model)
    weight = model.model.layers[0].mlp.gate.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = weight.detach().clone()

    def value():
        with routers.replaying(expert_LNk):
            return logits_of(model).log_softmax(-1)[..., 3].sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    # The router's softmax is one of float32, so a step has to be large against its rounding.
    values = []
    for step in (2e-3, -2e-3):
        with torch.no_grad():
            weight.copy_(start + step * direction)
            values.append(float(value()))
    assert (values[0] - values[1]) / 4e-3 == pytest.approx(float((gradient * direction).sum()), rel=2e-3)


def test_a_copy_of_the_model_chooses_for_itself():
    model = random_model("qwen3")
    routers = Routers(model)
    twin = copy.deepcopy(model)
    with torch.no_grad(), routers.replaying(other_experts(routers, model)):
        moved, own = logits_of(model), logits_of(twin)
    with torch.no_grad():
        assert torch.equal(own, logits_of(model))
    assert not torch.equal(moved, own)


def test_an_error_inside_leaves_the_routers_as_they_were():
    model = random_model("qwen3")
    routers = Routers(model)
    plain = logits_of(model)
    with pytest.raises(ZeroDivisionError), routers.replaying(other_experts(routers, model)):
        raise ZeroDivisionError
    assert torch.equal(logits_of(model), plain)


def test_a_model_without_experts_is_refused():
    sizes = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, bos_token_id=None
    )
    with pytest.raises(ConfigError, match="routing cannot be replayed") as caught:
        Routers(LlamaForCausalLM(sizes))
    assert "0 routers" in caught.value.given


# The tiny mixture


def test_the_tiny_mixture_depends_on_its_seed_alone_and_has_experts_in_every_layer():
    config = tiny_moe.Config(layers=3, width=32, experts=4, active=2, alphabet="01")
    once, again, other = (config.build(dtype="float32", seed=seed).model for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))
    assert not torch.equal(once.lm_head.weight, other.lm_head.weight)
    assert len(Routers(once)._routers) == 3


@pytest.mark.parametrize(("wrong", "named"), [({"active": 9}, "experts 8, active 9"), ({"heads": 5}, "width 64, heads 5")])
def test_sizes_that_cannot_work_are_named(wrong, named):
    with pytest.raises(ConfigError, match="tiny model") as caught:
        tiny_moe.Config(**wrong).build()
    assert named in caught.value.given
