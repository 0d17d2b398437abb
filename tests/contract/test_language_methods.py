"""What is particular to each language method: closed forms, and the identities that tie the methods to one another.

Shapes: B trajectories, T action tokens, V vocabulary.
"""

import math

import pytest
import torch

from freerun.algorithms.language import aipo, decoupled_ppo, grpo, reinforce, sft
from freerun.errors import ConfigError
from freerun.ops import losses
from tests.contract.worked import batch_of, log, same_gradient, slopes

# REINFORCE and supervised fine-tuning


def test_reinforce_pushes_each_token_by_its_advantage():
    assert slopes(reinforce.Config(), log(0.5, 0.1), batch_of([2.0, -1.0]))[0] == [-2.0, 1.0]


@pytest.mark.parametrize(
    ("baseline", "credit"), [("group_mean", [1.0, -1.0, 0.0]), ("leave_one_out", [1.5, -1.5, 0.0]), ("none", [3.0, 1.0, 2.0])]
)
def test_reinforce_baselines_by_hand(tools, baseline, credit):
    algorithm = reinforce.Config(baseline=baseline).build()
    assert algorithm.credit(tools.group_of([3.0, 1.0, 2.0]), {})[0].tolist() == credit


def test_sft_raises_every_token_alike_whatever_the_rewards(tools):
    algorithm = sft.Config().build()
    assert algorithm.credit(tools.group_of([3.0, 0.0]), {})[0].tolist() == [1.0, 1.0]
    gradient, metrics = slopes(sft.Config(), log(0.5, 0.25), batch_of([2.0, -1.0]))
    assert gradient == [-1.0, -1.0]
    assert metrics["nll"] == pytest.approx(1.5 * math.log(2))


# AIPO


def test_aipo_weighs_by_the_ratio_up_to_rho_and_by_rho_beyond():
    behaviour, current, advantage = log(0.4, 0.1, 0.1, 0.1), log(0.2, 0.2, 0.8, 0.8), [1.0, 1.0, 1.0, -1.0]
    batch = batch_of(advantage, logp_behaviour=behaviour)
    gradient, metrics = slopes(aipo.Config(rho=4.0), current, batch)
    assert gradient == pytest.approx([-0.5, -2.0, -4.0, 4.0])
    assert metrics == pytest.approx({"weight": (0.5 + 2 + 4 + 4) / 4, "ratio/clipped": 0.5})
    gradient, _ = slopes(aipo.Config(rho=4.0, gradient="through_min"), current, batch)
    assert gradient == pytest.approx([-0.5, -2.0, 0.0, 0.0])


def test_aipo_without_a_bound_is_the_importance_weighted_policy_gradient(toy, tools):
    ratio_BT = (toy.outputs(toy.parameters)["logp"] - toy.batch["logp_behaviour"]).exp()
    batch = toy.batch.with_columns(advantage=ratio_BT * toy.batch["advantage"])
    weighted = tools.step_gradient(reinforce.Config().build(), toy, batch)
    assert torch.allclose(tools.step_gradient(aipo.Config(rho=math.inf).build(), toy, toy.batch), weighted, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["detached", "through_min"])
def test_aipo_on_policy_and_in_expectation_damps_by_rho_over_the_ratio(gradient):
    """`E_mu[min(r, rho) A score] = E_pi[min(1, rho / r) A score]`, by enumeration of a three-armed bandit."""
    current = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    behaviour = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    advantage = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    logits = current.log().requires_grad_()
    batch = batch_of(advantage[0].tolist(), logp_behaviour=behaviour.log()[None])
    algorithm = aipo.Config(rho=2.0, gradient=gradient).build()
    out = algorithm.terms[0].loss({"logp": logits.log_softmax(-1)[None]}, batch, {})
    (behaviour * out.loss[0]).sum().backward()
    ratio = current / behaviour
    keep = torch.where(ratio > 2.0, 2.0 / ratio if gradient == "detached" else 0.0, 1.0)
    score_VV = torch.eye(3, dtype=torch.float64) - current
    assert torch.allclose(logits.grad, -((current * keep * advantage[0])[:, None] * score_VV).sum(0))


# GRPO


def test_grpo_stops_the_gradient_of_tokens_that_moved_far_enough():
    proximal = log(0.4, 0.4, 0.4, 0.4)
    current = log(0.44, 0.54, 0.30, 0.30)
    batch = batch_of([1.0, 1.0, 1.0, -1.0], logp_behaviour=proximal, logp_proximal=proximal)
    for choice in ("behaviour", "recomputed"):
        gradient, metrics = slopes(grpo.Config(clip_low=0.2, clip_high=0.3, proximal=choice), current, batch)
        assert gradient == pytest.approx([-1.1, 0.0, -0.75, 0.0])
        assert metrics == pytest.approx({"proximal_ratio": (1.1 + 1.35 + 0.75 + 0.75) / 4, "ratio/clipped": 0.5})


def test_grpo_clips_low_and_high_separately():
    batch = batch_of([1.0, -1.0], logp_behaviour=log(0.4, 0.4))
    assert slopes(grpo.Config(clip_low=0.3, clip_high=0.1), log(0.5, 0.3), batch)[0] == pytest.approx([0.0, 0.75])
    assert slopes(grpo.Config(clip_low=0.1, clip_high=0.3), log(0.5, 0.3), batch)[0] == pytest.approx([-1.25, 0.0])


def test_grpo_credit_is_the_z_score_or_the_centred_reward(tools):
    group = tools.group_of([1.0] + 7 * [0.0])
    first = {n: grpo.Config(normalise=n).build().credit(group, {})[0][0].item() for n in ("std", "population_std", "none")}
    assert first == pytest.approx({"std": 2.4749, "population_std": 2.6457, "none": 0.875}, abs=1e-4)


def test_grpo_needs_a_reference_only_where_its_coefficient_is_not_zero(toy, tools):
    assert "logp_reference" not in grpo.Config().build().needs
    algorithm = grpo.Config(kl_coefficient=0.1, kl_estimator="k2").build()
    assert "logp_reference" in algorithm.needs
    u = 0.3
    batch = batch_of([0.0], logp_behaviour=log(0.4), logp_reference=log(0.4))
    logp = (log(0.4) + u).requires_grad_()
    total, metrics = tools.step_loss(algorithm, [({"logp": logp}, batch)])
    total.backward()
    assert logp.grad.item() == pytest.approx(0.1 * u)
    assert metrics["kl/reference"].value == pytest.approx(u * u / 2)


def test_the_gate_of_grpo_is_a_mask_on_the_importance_weighted_gradient(toy, tools):
    """PPO's clip is the one-side gate of REC (arXiv 2509.24203): the same gradient, written as a score with a mask."""
    ratio_BT = (toy.outputs(toy.parameters)["logp"] - toy.batch["logp_behaviour"]).exp()
    advantage_BT = toy.batch["advantage"]
    gate_BT = torch.where(advantage_BT > 0, ratio_BT <= 1.2, ratio_BT >= 0.8)
    masked = toy.batch.with_columns(advantage=gate_BT * ratio_BT * advantage_BT)
    left = tools.step_gradient(grpo.Config(reduction="token_mean").build(), toy, toy.batch)
    assert 0 < int((~gate_BT & toy.batch["mask"]).sum()) < int(toy.batch["mask"].sum())
    assert torch.allclose(left, tools.step_gradient(reinforce.Config().build(), toy, masked), rtol=1e-6)


# Decoupled PPO


def test_decoupled_ppo_is_the_behaviour_weight_times_ppo_around_the_proximal_policy():
    behaviour, proximal = log(0.2, 0.2, 0.2, 0.05), log(0.4, 0.4, 0.1, 0.4)
    current = log(0.44, 0.60, 0.11, 0.40)
    batch = batch_of([1.0, 1.0, -1.0, 1.0], logp_behaviour=behaviour, logp_proximal=proximal)
    gradient, metrics = slopes(decoupled_ppo.Config(cap=5.0), current, batch)
    # Weights 2, 2, 0.5, 8; ratios 1.1, 1.5 (clipped), 1.1, 1.
    assert gradient == pytest.approx([-2.2, 0.0, 0.55, 0.0])
    assert metrics == pytest.approx(
        {"proximal_ratio": (1.1 + 1.5 + 1.1 + 1) / 4, "weight": (2 + 2 + 0.5 + 0) / 4, "beyond_cap": 0.25, "ratio/clipped": 0.5}
    )
    gradient, metrics = slopes(decoupled_ppo.Config(cap=5.0, beyond_cap="clamp"), current, batch)
    assert gradient == pytest.approx([-2.2, 0.0, 0.55, -5.0])
    assert metrics["weight"] == pytest.approx((2 + 2 + 0.5 + 5) / 4)


@pytest.mark.parametrize("normalise", ["std", "none"])
def test_decoupled_ppo_with_the_proximal_policy_as_behaviour_is_ppo(toy, tools, normalise):
    ppo = grpo.Config(reduction="token_mean", normalise=normalise)
    decoupled = decoupled_ppo.Config(normalise=normalise)
    fresh = toy.batch.with_columns(logp_proximal=toy.batch["logp_behaviour"])
    assert torch.equal(*(tools.step_gradient(config.build(), toy, fresh) for config in (decoupled, ppo)))
    group = tools.group_of([0.3, -1.0, 0.7])
    assert torch.equal(decoupled.build().credit(group, {})[0], ppo.build().credit(group, {})[0])


def test_decoupled_ppo_clips_the_ratio_to_behaviour_around_the_behaviour_weight(toy, tools):
    """`w min(u A, clip(u, 1 - e, 1 + e) A) = min(r A, clip(r, w (1 - e), w (1 + e)) A)` with r = u w."""
    parameters = toy.parameters.clone().requires_grad_()
    mask_BT, advantage_BT = toy.batch["mask"], toy.batch["advantage"]
    ratio_BT = (toy.outputs(parameters)["logp"] - toy.batch["logp_behaviour"]).exp()
    weight_BT = (toy.batch["logp_proximal"] - toy.batch["logp_behaviour"]).exp()
    clipped_BT = torch.maximum(torch.minimum(ratio_BT, 1.2 * weight_BT), 0.8 * weight_BT)
    (-torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)[mask_BT].sum() / mask_BT.sum()).backward()
    gradient = tools.step_gradient(decoupled_ppo.Config(cap=1e6).build(), toy, toy.batch)
    assert torch.allclose(gradient, parameters.grad, rtol=1e-6)


def test_tokens_beyond_the_cap_stay_in_the_denominator(toy, tools):
    weight_BT = (toy.batch["logp_proximal"] - toy.batch["logp_behaviour"]).exp()
    beyond_BT = (weight_BT > 1.1) & toy.batch["mask"]
    assert 0 < int(beyond_BT.sum()) < int(toy.batch["mask"].sum())
    zeroed = toy.batch.with_columns(advantage=torch.where(beyond_BT, 0.0, toy.batch["advantage"]))
    left = tools.step_gradient(decoupled_ppo.Config(cap=1.1).build(), toy, toy.batch)
    assert torch.allclose(left, tools.step_gradient(decoupled_ppo.Config(cap=1e6).build(), toy, zeroed), rtol=1e-6)


def test_interpolation_gives_behaviour_at_lag_zero_and_nears_the_current_policy_with_lag():
    behaviour, current = torch.tensor([[-2.0, -2.0, -2.0]]), torch.tensor([[-1.0, -1.0, -1.0]])
    proximal = decoupled_ppo.interpolated(behaviour, current, torch.tensor([[0, 1, 3]]))
    assert proximal.tolist() == [[-2.0, -1.5, -1.25]]
    far = decoupled_ppo.interpolated(behaviour, current, torch.full((1, 3), 10**6))
    assert torch.allclose(far, current, atol=1e-5)


def test_interpolated_decoupled_ppo_is_ppo_on_fresh_data_and_the_importance_weighted_gradient_on_very_old(toy, tools):
    lag_BT, ppo = toy.batch["lag"], grpo.Config(reduction="token_mean")
    method = decoupled_ppo.Config(proximal="interpolated", cap=1e6)
    assert same_gradient(tools, toy, method, ppo, lag=torch.zeros_like(lag_BT))
    assert same_gradient(tools, toy, method, aipo.Config(rho=math.inf), lag=torch.full_like(lag_BT, 10**9))


def test_naive_clipping_loses_signal_to_drift_that_decoupled_clipping_keeps():
    """Half of the drifted tokens whose advantage has the sign of the drift lie outside the clip before the update begins."""
    make = torch.Generator().manual_seed(0)
    drift_BT = torch.randn(1, 20_000, generator=make)
    advantage_BT = torch.where(torch.rand(1, 20_000, generator=make) < 0.5, -1.0, 1.0)
    for spread, lost in ((0.1, 0.023), (0.2, 0.156), (0.4, 0.307)):
        _, clipped_BT = losses.clipped_surrogate(spread * drift_BT, advantage_BT, low=0.2, high=0.2)
        assert clipped_BT.float().mean().item() == pytest.approx(lost, abs=0.01)
        _, clipped_BT = losses.clipped_surrogate(0 * drift_BT, advantage_BT, low=0.2, high=0.2)
        assert not clipped_BT.any()


# Configs


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (aipo, {"rho": 0.0}, "rho > 0"),
        (grpo, {"clip_low": 1.5}, "0 <= clip_low <= 1"),
        (grpo, {"clip_high": -0.1}, "clip_high >= 0"),
        (grpo, {"dual_clip": 1.0}, "dual_clip > 1"),
        (grpo, {"kl_coefficient": -1.0}, "kl_coefficient >= 0"),
        (grpo, {"normalise": "variance"}, "normalise is one of std, population_std, none"),
        (decoupled_ppo, {"cap": 0.0}, "cap > 0"),
        (decoupled_ppo, {"clip_low": float("nan")}, "0 <= clip_low <= 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
    assert method.__name__ in caught.value.what
