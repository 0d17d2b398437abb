"""MiniRL and ReMix: one weight and one mask, and a window that moves with the policy at the start of the update.

Shapes: B trajectories, T action tokens, A actions.
"""

import math

import pytest
import torch

from freerun.algorithms.language import aipo, decoupled_ppo, grpo, minirl, reinforce, remix
from freerun.errors import ConfigError
from tests.contract.worked import batch_of, log, same_gradient, slopes

SEQUENCES = "sequence_mean_token_sum"

# MiniRL


def test_minirl_weighs_by_the_ratio_to_the_sampler_and_masks_by_the_ratio_to_the_proximal_policy():
    """The last two differ in their ratio to the sampler alone: 10 is cut off at 5, and does not mask."""
    behaviour = log(0.2, 0.2, 0.2, 0.2, 0.04)
    proximal = log(0.3, 0.3, 0.3, 0.3, 0.4)
    current = log(0.36, 0.39, 0.27, 0.21, 0.4)
    batch = batch_of([1.0, 1.0, -1.0, -1.0, 1.0], logp_behaviour=behaviour, logp_proximal=proximal)
    gradient, metrics = slopes(minirl.Config(), current, batch)
    # Ratios to the proximal policy 1.2, 1.3, 0.9, 0.7, 1; to the sampler 1.8, 1.95, 1.35, 1.05, 10.
    assert gradient == pytest.approx([-1.8, 0.0, 1.35, 0.0, -5.0])
    assert metrics["ratio/clipped"] == pytest.approx(0.4)
    assert metrics["weight"] == pytest.approx((1.8 + 1.95 + 1.35 + 1.05 + 5.0) / 5)
    assert metrics["moved"] == pytest.approx(sum(abs(math.log(r)) for r in (1.2, 1.3, 0.9, 0.7, 1.0)) / 5)


def test_the_mask_is_one_sided():
    same = log(0.2, 0.2)
    batch = batch_of([1.0, -1.0], logp_behaviour=same, logp_proximal=same)
    assert slopes(minirl.Config(), log(0.1, 0.4), batch)[0] == pytest.approx([-0.5, 2.0])


def test_minirl_without_the_mask_is_aipo_summed_over_tokens(toy, tools):
    for cap in (1.2, 5.0, math.inf):
        unmasked = minirl.Config(clip_low=1.0, clip_high=1e9, cap=cap)
        assert same_gradient(tools, toy, unmasked, aipo.Config(rho=cap, reduction=SEQUENCES))


def test_minirl_without_mask_and_cap_is_the_token_importance_weighted_gradient(toy, tools):
    ratio_BT = (toy.outputs(toy.parameters)["logp"] - toy.batch["logp_behaviour"]).exp()
    weighted = toy.batch.with_columns(advantage=ratio_BT * toy.batch["advantage"])
    left = tools.step_gradient(minirl.Config(clip_low=1.0, clip_high=1e9, cap=math.inf).build(), toy, toy.batch)
    assert torch.allclose(left, tools.step_gradient(reinforce.Config(reduction=SEQUENCES).build(), toy, weighted), rtol=1e-6)


def test_the_weight_factors_into_staleness_and_the_disagreement_of_engines():
    """`pi / mu = (pi / proximal) (proximal / mu)`: decoupled PPO, which has both, has MiniRL's gradient inside clip and cap."""
    behaviour, proximal, current = log(0.2, 0.3), log(0.25, 0.27), log(0.27, 0.3)
    batch = batch_of([1.0, -1.0], logp_behaviour=behaviour, logp_proximal=proximal)
    decoupled = decoupled_ppo.Config(normalise="none")
    assert slopes(minirl.Config(), current, batch)[0] == pytest.approx(slopes(decoupled, current, batch)[0])


def test_the_weight_keeps_the_direction_of_the_gradient_when_the_sampler_is_noisy():
    """Six actions, a sampler whose logits have a noise of 0.5: the expected gradient is exact with the weight, nearer with one
    cut off at 1 than with none. By enumeration, over 200 draws of policy, noise and rewards."""
    make = torch.Generator().manual_seed(0)
    cosines = {"weight": [], "none": [], "cap 1": []}
    for _ in range(200):
        logits, noise = (torch.randn(6, generator=make, dtype=torch.float64) for _ in range(2))
        reward = torch.randn(6, generator=make, dtype=torch.float64)
        pi, mu = logits.softmax(-1), (logits + 0.5 * noise).softmax(-1)
        advantage = reward - (pi * reward).sum()
        true = gradient_of(logits, pi * advantage)
        arms = {"weight": minirl.Config(cap=math.inf), "cap 1": minirl.Config(cap=1.0), "none": reinforce.Config()}
        batch = batch_of(advantage.tolist(), logp_behaviour=mu.log()[None], logp_proximal=pi.log()[None])
        for name, config in arms.items():
            slope, _ = slopes(config, pi.log()[None], batch)
            found = gradient_of(logits, -mu * torch.tensor(slope))
            cosines[name].append(torch.cosine_similarity(found, true, dim=0).item())
    mean = {name: sum(values) / len(values) for name, values in cosines.items()}
    assert min(cosines["weight"]) > 1 - 1e-9
    assert mean["none"] < mean["cap 1"] < 1 - 1e-3


def gradient_of(logits, weight_A):
    """`sum of weight * score` over the actions of a softmax."""
    return weight_A - weight_A.sum() * logits.softmax(-1)


def test_routing_is_the_generators_the_trainers_or_nobodys():
    assert minirl.Config().build().routing == "free"
    assert {minirl.Config(routing=name).build().routing for name in ("update", "rollout")} == {"update", "rollout"}


# ReMix: the window


def test_the_window_is_added_to_the_ratio_at_the_start_of_the_update():
    """At a centre of 1/2 a clip of 0.2 is the window 0.3 to 0.7; decoupled PPO's would be 0.4 to 0.6."""
    behaviour, proximal = log(*[0.8] * 4), log(*[0.4] * 4)
    batch = batch_of([1.0, 1.0, -1.0, -1.0], logp_behaviour=behaviour, logp_proximal=proximal)
    method = remix.Config(kl_coefficient=0.0)
    inside, metrics = slopes(method, log(0.8 * 0.55, 0.8 * 0.69, 0.8 * 0.31, 0.8 * 0.45), batch)
    assert inside == pytest.approx([-0.55, -0.69, 0.31, 0.45])
    assert metrics == pytest.approx({"centre": 0.5, "ratio/clipped": 0.0})
    outside, metrics = slopes(method, log(0.8 * 0.71, 0.8 * 0.1, 0.8 * 0.29, 0.8 * 0.9), batch)
    assert outside == pytest.approx([0.0, -0.1, 0.0, 0.9])
    assert metrics["ratio/clipped"] == 0.5
    multiplied, _ = slopes(decoupled_ppo.Config(normalise="none"), log(0.8 * 0.55, 0.8 * 0.69, 0.8 * 0.31, 0.8 * 0.45), batch)
    assert multiplied == pytest.approx([-0.55, 0.0, 0.0, 0.45])


def test_remix_on_fresh_data_is_ppo(toy, tools):
    fresh = {"logp_proximal": toy.batch["logp_behaviour"]}
    pair = (remix.Config(kl_coefficient=0.0), grpo.Config(reduction="token_mean"))
    assert torch.equal(*(tools.step_gradient(config.build(), toy, toy.batch.with_columns(**fresh)) for config in pair))
    plain = remix.Config(kl_coefficient=0.0, normalise="none", clip=0.05)
    narrow = grpo.Config(reduction="token_mean", normalise="none", clip_low=0.05, clip_high=0.05)
    assert same_gradient(tools, toy, plain, narrow, **fresh)
    assert not same_gradient(tools, toy, plain, narrow)


# ReMix: the two KLs, the schedule, the switch


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 1.0), (50, 1.0), (51, 0.9), (60, 0.9), (61, 0.8), (80, 0.7), (90, 0.6), (91, 0.5), (101, 0.5), (10**6, 0.5)],
)
def test_the_weight_of_the_reference_falls_by_a_tenth_every_ten_steps_to_a_half(step, share):
    assert remix.reference_share(step, 50) == pytest.approx(share)


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (55, 0.9), (1000, 0.5)])
def test_the_kl_is_a_mixture_of_that_to_the_reference_and_that_to_the_previous_policy(step, share):
    """k2's slope is the log-ratio: 0.5 to the reference, -0.2 to the previous policy."""
    _, term = remix.Config(kl_coefficient=0.01, kl_estimator="k2").build().terms
    assert term.weight == 0.01
    logp = log(0.4).requires_grad_()
    batch = batch_of([0.0], logp_reference=log(0.4) - 0.5, logp_previous=log(0.4) + 0.2)
    out = term.loss({"logp": logp}, batch, {"step": step})
    out.loss.sum().backward()
    assert logp.grad.item() == pytest.approx(share * 0.5 - (1 - share) * 0.2)
    assert out.loss.item() == pytest.approx(share * 0.125 + (1 - share) * 0.02)


def test_columns_of_frozen_policies_are_asked_for_only_where_they_count():
    frozen = {"logp_reference", "logp_previous"}
    assert frozen <= remix.Config().build().needs
    assert not frozen & remix.Config(kl_coefficient=0.0).build().needs


def test_after_its_number_of_steps_it_rebases_once_and_is_on_policy_ever_after():
    algorithm = remix.Config(reincarnate=3).build()
    state, seen = algorithm.init(), []
    for _ in range(5):
        state = algorithm.events["iteration_end"](state, {})
        seen.append((algorithm.rebase(state), algorithm.fresh_only(state)))
    assert seen == [(False, False), (False, False), (True, True), (False, True), (False, True)]
    never = remix.Config(reincarnate=0).build()
    assert not any(never.rebase({"step": n}) or never.fresh_only({"step": n}) for n in (0, 1, 50, 100))


def test_entropy_is_raised_where_it_has_a_weight(toy):
    *_, term = remix.Config(entropy_coefficient=0.25).build().terms
    out = term.loss(toy.outputs(toy.parameters), toy.batch, {"step": 0})
    assert term.weight == 0.25
    assert torch.equal(out.loss, -toy.outputs(toy.parameters)["entropy"])


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (minirl, {"cap": 0.0}, "cap > 0"),
        (minirl, {"routing": "rollouts"}, "routing is one of free, update, rollout"),
        (remix, {"clip": -0.1}, "clip >= 0"),
        (remix, {"reincarnate": -1}, "reincarnate >= 0"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
