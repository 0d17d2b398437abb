"""The family that corrects for a sampler that is not the trainer: TIS, IcePop, DART. PPO's clip around the proximal policy,
times a weight for what lies between it and the behaviour policy.

Shapes: B trajectories, T action tokens, V arms.
"""

import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.language import dart, decoupled_ppo, grpo, gspo, icepop, reinforce, tis
from freerun.errors import ConfigError
from freerun.types import Batch


def log(*values):
    return torch.tensor([values], dtype=torch.float64).log()


def batch_of(advantage, **columns):
    advantage_BT = torch.tensor([advantage], dtype=torch.float64)
    mask_BT = torch.ones_like(advantage_BT, dtype=torch.bool)
    return Batch({"mask": mask_BT, "mask_selected": mask_BT, "advantage": advantage_BT, **columns})


def slopes(config, logp_BT, batch):
    """Derivative of the policy term's element-wise loss with respect to each log-prob, and the values of its metrics."""
    algorithm = config.build()
    logp_BT = logp_BT.clone().requires_grad_()
    out = algorithm.terms[0].loss({"logp": logp_BT}, batch, algorithm.init())
    out.loss.sum().backward()
    return logp_BT.grad[0].tolist(), {name: metric.value for name, metric in out.metrics.items()}


def same_gradient(tools, toy, left, right, **columns):
    batch = toy.batch.with_columns(**columns)
    gradients = [tools.step_gradient(config.build(), toy, batch) for config in (left, right)]
    return torch.allclose(*gradients, rtol=1e-6, atol=1e-8)


# Behaviour weights 2, 4, 0.25 and 1; ratios to the proximal policy 1.1, 1.1, 1.1 and 1.5, the last beyond the clip.
BEHAVIOUR, PROXIMAL, CURRENT = log(0.2, 0.1, 0.4, 0.4), log(0.4, 0.4, 0.1, 0.4), log(0.44, 0.44, 0.11, 0.60)
BATCH = batch_of([1.0, 1.0, -1.0, 1.0], logp_behaviour=BEHAVIOUR, logp_proximal=PROXIMAL)


# TIS


def test_tis_caps_the_behaviour_weight_and_keeps_the_token():
    gradient, metrics = slopes(tis.Config(cap=3.0), CURRENT, BATCH)
    assert gradient == pytest.approx([-2.2, -3.3, 0.275, 0.0])
    assert metrics == pytest.approx(
        {"proximal_ratio": (3.3 + 1.5) / 4, "weight": (2 + 3 + 0.25 + 1) / 4, "beyond_cap": 0.25, "ratio/clipped": 0.5}
    )


def test_tis_on_sequences_weighs_all_tokens_of_a_response_by_the_product():
    gradient, metrics = slopes(tis.Config(cap=3.0, level="sequence"), CURRENT, BATCH)
    assert gradient == pytest.approx([-2.2, -2.2, 2.2, 0.0])
    assert metrics["weight"] == pytest.approx(2 * 4 * 0.25)
    assert slopes(tis.Config(cap=1.5, level="sequence"), CURRENT, BATCH)[0] == pytest.approx([-1.65, -1.65, 1.65, 0.0])


def test_tis_on_tokens_is_decoupled_ppo_with_a_clamp(toy, tools):
    assert same_gradient(tools, toy, tis.Config(cap=1.3), decoupled_ppo.Config(cap=1.3, beyond_cap="clamp"))


def test_tis_levels_agree_on_responses_of_one_token(toy, tools):
    mask_BT = toy.batch["mask"] & (torch.arange(7) == 0)
    assert same_gradient(tools, toy, tis.Config(level="token"), tis.Config(level="sequence"), mask=mask_BT)


# IcePop


def test_icepop_keeps_the_weights_inside_its_window_and_drops_the_tokens_outside():
    gradient, metrics = slopes(icepop.Config(low=0.5, high=3.0), CURRENT, BATCH)
    assert gradient == pytest.approx([-2.2, 0.0, 0.0, 0.0])
    assert metrics == pytest.approx(
        {"proximal_ratio": (3.3 + 1.5) / 4, "weight": (2 + 1) / 4, "dropped": 0.5, "ratio/clipped": 0.75}
    )
    assert slopes(icepop.Config(low=0.25, high=4.0), CURRENT, BATCH)[0] == pytest.approx([-2.2, -4.4, 0.275, 0.0])


def test_tokens_that_icepop_drops_stay_in_the_denominator(toy, tools):
    weight_BT = (toy.batch["logp_proximal"] - toy.batch["logp_behaviour"]).exp()
    kept_BT = (weight_BT >= 0.8) & (weight_BT <= 1.25)
    assert 0 < int((~kept_BT & toy.batch["mask"]).sum()) < int(toy.batch["mask"].sum())
    zeroed = toy.batch.with_columns(advantage=torch.where(kept_BT, toy.batch["advantage"], 0.0))
    left = tools.step_gradient(icepop.Config(low=0.8, high=1.25).build(), toy, toy.batch)
    assert torch.allclose(left, tools.step_gradient(icepop.Config(low=0.0, high=1e6).build(), toy, zeroed), rtol=1e-6)


# All of them


NO_FILTER = {"keep": 1.0, "kl_coefficient": 0.0, "clip_low": 0.2, "clip_high": 0.2}
WIDE = [tis.Config(cap=1e6), icepop.Config(low=0.0, high=1e6), dart.Config(cap=1e6, **NO_FILTER)]
NARROW = [tis.Config(), tis.Config(level="sequence"), icepop.Config(), dart.Config(**NO_FILTER)]


@pytest.mark.parametrize("method", NARROW, ids=lambda c: c.build().name)
def test_with_the_proximal_policy_as_behaviour_all_are_ppo(toy, tools, method):
    ppo = grpo.Config(reduction="token_mean")
    assert same_gradient(tools, toy, method, ppo, logp_behaviour=toy.batch["logp_proximal"])


@pytest.mark.parametrize("method", WIDE, ids=lambda c: c.build().name)
def test_without_bounds_all_are_the_importance_weight_times_ppo(toy, tools, method):
    weight_BT = (toy.batch["logp_proximal"] - toy.batch["logp_behaviour"]).exp()
    weighted = toy.batch.with_columns(advantage=weight_BT * toy.batch["advantage"], logp_behaviour=toy.batch["logp_proximal"])
    expected = tools.step_gradient(grpo.Config(reduction="token_mean").build(), toy, weighted)
    assert torch.allclose(tools.step_gradient(method.build(), toy, toy.batch), expected, rtol=1e-6)


def expected_gradient(config, sampler_V, policy_V, advantage_V):
    """Of the policy's logits, when the sampler draws one token, over all its draws."""
    logits = policy_V.log().requires_grad_()
    logp_BT = logits.log_softmax(-1)[None]
    columns = {"logp_behaviour": sampler_V.log()[None], "logp_proximal": policy_V.log()[None]}
    out = config.build().terms[0].loss({"logp": logp_BT}, batch_of(advantage_V.tolist(), **columns), {})
    (sampler_V * out.loss[0]).sum().backward()
    return -logits.grad


@pytest.fixture
def noisy():
    """A policy over six arms and its sampler, whose logits are off by noise of size .5."""
    make = torch.Generator().manual_seed(0)
    logits, noise, reward = (torch.randn(6, generator=make, dtype=torch.float64) for _ in range(3))
    policy_V = logits.softmax(-1)
    return (logits + 0.5 * noise).softmax(-1), policy_V, reward - (policy_V * reward).sum()


def test_a_noisy_sampler_biases_no_correction_and_none_that_is_unbounded(noisy):
    _, policy_V, advantage_V = noisy
    truth = expected_gradient(reinforce.Config(), policy_V, policy_V, advantage_V)
    assert torch.cosine_similarity(expected_gradient(reinforce.Config(), *noisy), truth, dim=0) < 0.99
    for config in WIDE:
        assert torch.allclose(expected_gradient(config, *noisy), truth, rtol=1e-9)


def test_a_cap_damps_and_a_window_drops_what_lies_beyond(noisy):
    """`E_mu[min(w, C) A score] = E_pi[min(1, C / w) A score]`, and a window keeps `E_pi[1[low <= w <= high] A score]`."""
    sampler_V, policy_V, advantage_V = noisy
    weight_V = policy_V / sampler_V
    score_VV = torch.eye(6, dtype=torch.float64) - policy_V
    kept = {
        tis.Config(cap=1.1): (1.1 / weight_V).clamp(max=1.0),
        dart.Config(cap=1.1, **NO_FILTER): (1.1 / weight_V).clamp(max=1.0),
        icepop.Config(low=0.9, high=1.1): ((weight_V >= 0.9) & (weight_V <= 1.1)).double(),
    }
    for config, share_V in kept.items():
        assert 0 < float(share_V.sum()) < 6
        expected = ((policy_V * share_V * advantage_V)[:, None] * score_VV).sum(0)
        assert torch.allclose(expected_gradient(config, *noisy), expected, rtol=1e-9)


# DART


def test_dart_keeps_the_steps_of_highest_entropy_in_each_group():
    """Mean entropies .1, .5, .3, .9, .7 in one group of five, of which four stay, and one alone in another, which stays."""
    entropy = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.3, 50.0], [0.9, 0.9], [0.7, 0.7], [0.0, 0.0]])
    mask = torch.tensor([[True, True]] * 6)
    mask[2, 1] = False
    batch = Batch({"mask": mask, "group": torch.tensor([0, 0, 0, 0, 0, 1]), "entropy_proximal": entropy})
    made = dart.Config().build().prepare(batch, {})["mask_selected"]
    assert made.any(-1).tolist() == [False, True, True, True, True, True]
    assert torch.equal(made, mask & made.any(-1, keepdim=True))


def test_steps_that_dart_drops_have_neither_policy_gradient_nor_kl_but_count(toy, tools):
    """Half of three and of four steps that have tokens: 2 and 2 stay."""
    algorithm = dart.Config(keep=0.5).build()
    batch = tools.prepared(algorithm, toy.batch)
    dropped_BT = batch["mask"] & ~batch["mask_selected"]
    assert int(dropped_BT.any(-1).sum()) == 3
    logp_BT = toy.outputs(toy.parameters)["logp"].detach().requires_grad_()
    tools.step_loss(algorithm, [({"logp": logp_BT}, batch)])[0].backward()
    assert logp_BT.grad[dropped_BT].abs().sum() == 0
    whole = dart.Config(keep=1.0).build()
    other_BT = toy.outputs(toy.parameters)["logp"].detach().requires_grad_()
    tools.step_loss(whole, [({"logp": other_BT}, tools.prepared(whole, toy.batch))])[0].backward()
    assert torch.equal(logp_BT.grad[batch["mask_selected"]], other_BT.grad[batch["mask_selected"]])


def test_dart_never_amplifies_with_its_default_cap():
    gradient, metrics = slopes(dart.Config(), CURRENT, BATCH)
    assert gradient == pytest.approx([-1.1, -1.1, 0.275, 0.0])
    assert metrics["weight"] == pytest.approx((1 + 1 + 0.25 + 1) / 4)


def test_dart_without_filter_and_kl_is_tis(toy, tools):
    assert same_gradient(tools, toy, dart.Config(cap=1.3, **NO_FILTER), tis.Config(cap=1.3))
    assert dart.Config(**NO_FILTER).build().reinforce_on_policy
    assert not dart.Config().build().reinforce_on_policy


def test_dart_as_released_is_gspo_with_a_weight_and_a_dual_clip(toy, tools):
    bounds = {"clip_low": 0.1, "clip_high": 0.28}
    released = replace(dart.NAMED["code"], kl_coefficient=0.0)
    assert same_gradient(tools, toy, released, gspo.Config(**bounds), logp_behaviour=toy.batch["logp_proximal"])
    weight_BT = (toy.batch["logp_proximal"] - toy.batch["logp_behaviour"]).exp().clamp(max=1.0)
    weighted = toy.batch.with_columns(advantage=weight_BT * toy.batch["advantage"])
    expected = tools.step_gradient(gspo.Config(**bounds, proximal="recomputed").build(), toy, weighted)
    assert torch.allclose(tools.step_gradient(released.build(), toy, toy.batch), expected, rtol=1e-6)
    # A bad token 12 times as likely as at the start of the update, alone in its step.
    far = batch_of([-1.0], logp_behaviour=log(0.05), logp_proximal=log(0.05))
    assert slopes(released, log(0.6), far)[0] == [0.0]
    assert slopes(replace(released, dual_clip=None), log(0.6), far)[0] == pytest.approx([12.0])


def test_dart_adds_the_kl_of_the_steps_that_it_keeps(toy, tools):
    u = 0.3
    batch = batch_of([0.0], logp_behaviour=log(0.4), logp_proximal=log(0.4), logp_reference=log(0.4))
    logp = (log(0.4) + u).requires_grad_()
    total, metrics = tools.step_loss(dart.Config(kl_coefficient=0.5).build(), [({"logp": logp}, batch)])
    total.backward()
    assert logp.grad.item() == pytest.approx(0.5 * (1 - math.exp(-u)))
    assert metrics["kl/reference"].value == pytest.approx(math.exp(-u) - 1 + u)


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (tis, {"cap": 0.0}, "cap > 0"),
        (icepop, {"low": 2.0}, "0 <= low <= 1 <= high"),
        (icepop, {"high": 0.5}, "0 <= low <= 1 <= high"),
        (dart, {"keep": 0.0}, "0 < keep <= 1"),
        (dart, {"dual_clip": 1.0}, "dual_clip > 1"),
        (dart, {"kl_coefficient": -1.0}, "kl_coefficient >= 0"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
    assert method.__name__ in caught.value.what
