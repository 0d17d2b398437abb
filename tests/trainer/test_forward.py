"""The policy's log-probs against a plain forward pass over each trajectory alone, whatever the packing.

Shapes: B trajectories, T action tokens.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from freerun.errors import ConfigError
from freerun.trainer.config import TrainerConfig
from freerun.trainer.forward import Policy, load_weights, named_weights
from freerun.trainer.packing import packs_of_rows, packs_of_trees

PACKINGS = {"rows": packs_of_rows, "tree": packs_of_trees}


@pytest.fixture(scope="module")
def trajectories(group):
    return [t for item in range(3) for t in group(item).trajectories]


def packed_logps(model, trajectories, *, budget=1000, **config):
    """Log-probs of each trajectory's action tokens, in order, and the policy."""
    policy = Policy(model, TrainerConfig(**{"dtype": "float32", **config}))
    tokens, actions = [t.tokens_T for t in trajectories], [t.action_T for t in trajectories]
    found = {}
    for pack in PACKINGS[policy.config.packing](tokens, actions, budget=budget):
        logp_BT = policy(pack).logp_BT
        found |= {i: logp_BT[b, : trajectories[i].num_actions] for b, i in enumerate(pack.members)}
    return torch.cat([found[i] for i in range(len(trajectories))])


def plain(model, naive_logps, trajectories, temperature=1.0):
    return torch.cat([naive_logps(model, t.tokens_T, temperature)[t.action_T[1:]] for t in trajectories])


def gradient(model, logp_N):
    """Of an arbitrary function of the log-probs."""
    loss = (logp_N * torch.arange(len(logp_N)).sin()).sum()
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("budget", [1000, 25])
@pytest.mark.parametrize("packing", ["rows", "tree"])
def test_packs_have_the_log_probs_and_gradients_of_a_plain_forward_pass(
    network, naive_logps, trajectories, packing, budget, temperature
) -> None:
    model = copy.deepcopy(network)
    ours = packed_logps(model, trajectories, packing=packing, budget=budget, temperature=temperature)
    expected = plain(model, naive_logps, trajectories, temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(gradient(model, ours), gradient(model, expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"attn_implementation": "eager"}, {"tie_word_embeddings": True}])
def test_the_same_holds_for_other_llamas(llama, naive_logps, trajectories, changes) -> None:
    model = llama(**changes)
    torch.testing.assert_close(packed_logps(model, trajectories), plain(model, naive_logps, trajectories), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("packing", ["rows", "tree"])
def test_recomputed_activations_change_neither_log_probs_nor_gradients(network, trajectories, packing) -> None:
    results = []
    for recompute in (False, True):
        model = copy.deepcopy(network)
        logp_N = packed_logps(model, trajectories, packing=packing, checkpoint_activations=recompute)
        results.append((logp_N.detach(), gradient(model, logp_N)))
    torch.testing.assert_close(results[0], results[1])


def test_recomputing_does_not_switch_dropout_on(llama, trajectories) -> None:
    model = llama(attention_dropout=0.9)
    torch.testing.assert_close(
        packed_logps(model, trajectories, checkpoint_activations=True), packed_logps(model, trajectories), rtol=0, atol=0
    )


def test_soft_caps_and_windows_of_gemma_are_kept(naive_logps, trajectories) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    caps = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "sliding_window": 32}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=64, num_key_value_heads=1, attn_implementation="eager", **sizes, **caps)
    model = Gemma2ForCausalLM(config).eval()
    model.get_output_embeddings().weight.data.normal_()
    torch.testing.assert_close(packed_logps(model, trajectories), plain(model, naive_logps, trajectories), rtol=1e-4, atol=1e-4)


def test_a_trajectory_beyond_a_sliding_window_is_refused_in_a_tree_and_right_in_rows(naive_logps, trajectories) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=64, num_key_value_heads=1, attn_implementation="eager", sliding_window=4, **sizes)
    model = Gemma2ForCausalLM(config).eval()
    with pytest.raises(ConfigError, match="sliding attention window"):
        packed_logps(model, trajectories)
    torch.testing.assert_close(
        packed_logps(model, trajectories, packing="rows"), plain(model, naive_logps, trajectories), rtol=1e-4, atol=1e-4
    )


def test_bfloat16_compute_keeps_float32_weights_and_gradients(network, naive_logps, trajectories) -> None:
    model = copy.deepcopy(network)
    ours = packed_logps(model, trajectories, dtype="bfloat16")
    assert ours.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {g.dtype for g in gradient(model, ours)} == {torch.float32}
    expected = plain(model, naive_logps, trajectories)
    assert not torch.equal(ours, expected)
    torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.3)


class ScaledHead(nn.Linear):
    """An output layer that does more than a product."""

    def forward(self, hidden):
        return super().forward(hidden) * 0.5


def test_a_head_that_is_not_a_plain_projection_is_refused(network) -> None:
    model = copy.deepcopy(network)
    model.lm_head = ScaledHead(32, 64, bias=False)
    with pytest.raises(ConfigError, match="makes its logits in a way that the trainer does not know"):
        Policy(model, TrainerConfig())


def test_an_attention_without_masks_is_refused_for_trees_only(network) -> None:
    model = copy.deepcopy(network)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigError, match="needs an attention that takes a mask"):
        Policy(model, TrainerConfig(packing="tree"))


def test_tied_weights_have_one_name(llama) -> None:
    tied, untied = llama(tie_word_embeddings=True), llama()
    assert set(named_weights(untied)) - set(named_weights(tied)) == {"lm_head.weight"}
    assert set(named_weights(tied)) == {name for name, _ in tied.named_parameters()}


def test_weights_load_only_where_names_agree(llama) -> None:
    source, target = llama(), llama()
    for parameter in target.parameters():
        parameter.data.zero_()
    load_weights(target, named_weights(source))
    torch.testing.assert_close(named_weights(target), named_weights(source), rtol=0, atol=0)
    with pytest.raises(KeyError, match="lm_head"):
        load_weights(target, {k: v for k, v in named_weights(source).items() if k != "lm_head.weight"})
