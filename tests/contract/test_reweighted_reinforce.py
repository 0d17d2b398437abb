"""REC, OPMD, AsymRE and RED: REINFORCE on other policies' data, with a gate, a pull, a shift or fewer failures.

Shapes: B trajectories, T action tokens, G trajectories of a group, A arms.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from freerun.algorithms.language import asymre, grpo, opmd, rec, red, reinforce
from freerun.errors import ConfigError
from freerun.types import Batch, Prompt
from tests.contract.worked import batch_of, log, same_gradient, slopes

SEQUENCES = "sequence_mean_token_sum"

# REC: the gate

WIDE = {"clip_low": 0.2, "clip_high": 0.2, "outer_low": 0.6, "outer_high": 2.0}
RATIOS = [0.3, 0.5, 0.9, 1.1, 1.5, 3.5]
# Ratios far below, below, inside (two), above, far above.
TRUTH = {
    ("none", 1): [1, 1, 1, 1, 1, 1],
    ("none", -1): [1, 1, 1, 1, 1, 1],
    ("one_side", 1): [1, 1, 1, 1, 0, 0],
    ("one_side", -1): [0, 0, 1, 1, 1, 1],
    ("two_side", 1): [0, 0, 1, 1, 0, 0],
    ("two_side", -1): [0, 0, 1, 1, 0, 0],
    ("ring", 1): [1, 0, 1, 1, 0, 0],
    ("ring", -1): [0, 0, 1, 1, 0, 1],
}


@pytest.mark.parametrize(("clip", "sign"), TRUTH)
def test_the_gate_of_rec_keeps_these_ratios(clip, sign):
    advantage = [float(sign)] * len(RATIOS)
    batch = batch_of(advantage, logp_behaviour=log(*[0.2] * len(RATIOS)))
    logp = log(*(0.2 * r for r in RATIOS))
    gradient, metrics = slopes(rec.Config(clip=clip, **WIDE), logp, batch)
    truth = TRUTH[clip, sign]
    assert gradient == pytest.approx([-sign * kept for kept in truth])
    if clip != "none":
        assert metrics["ratio/clipped"] == pytest.approx(1 - sum(truth) / len(truth))
    weighted, _ = slopes(rec.Config(clip=clip, weight="importance", **WIDE), logp, batch)
    assert weighted == pytest.approx([-sign * kept * r for kept, r in zip(truth, RATIOS, strict=True)])


def test_bounds_of_the_gate_are_inclusive():
    bounds = {"clip_low": 0.25, "clip_high": 0.5, "outer_low": 0.75, "outer_high": 2.0}
    two_side, ring = (rec.Config(clip=clip, **bounds) for clip in ("two_side", "ring"))
    assert rec.kept(torch.tensor([0.75, 0.7499, 1.5, 1.5001]), torch.ones(4), two_side).tolist() == [True, False, True, False]
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert rec.kept(torch.tensor([0.25, 0.2501, 3.0, 2.9999]), sign, ring).tolist() == [True, False, True, False]


def test_a_ring_whose_outer_bounds_meet_the_clip_is_one_sided_and_the_wide_ring_is_two_sided(toy, tools):
    for weight in ("none", "importance"):
        one, two = (rec.Config(clip=clip, weight=weight) for clip in ("one_side", "two_side"))
        meeting = rec.Config(clip="ring", weight=weight, outer_low=0.2, outer_high=0.2)
        far = rec.Config(clip="ring", weight=weight, outer_low=1.0, outer_high=1e9)
        assert same_gradient(tools, toy, meeting, one)
        assert same_gradient(tools, toy, far, two)
        assert not same_gradient(tools, toy, one, two)


def test_one_sided_importance_weighted_rec_is_ppos_clip(toy, tools):
    for bounds in ({}, {"clip_low": 0.1, "clip_high": 0.5}):
        ppo = grpo.Config(normalise="none", reduction="token_mean", **bounds)
        assert same_gradient(tools, toy, rec.Config(weight="importance", **bounds), ppo)
        zero = toy.batch["advantage"].clone()
        zero[::2] = 0.0
        assert same_gradient(tools, toy, rec.Config(weight="importance", **bounds), ppo, advantage=zero)
    again = grpo.Config(normalise="none", reduction="token_mean", proximal="recomputed")
    assert same_gradient(tools, toy, rec.Config(weight="importance", old="recomputed"), again)


def test_rec_with_nothing_added_is_reinforce(toy, tools):
    assert same_gradient(tools, toy, rec.Config(clip="none"), reinforce.Config())
    assert rec.Config(clip="none").build().needs == {"mask", "advantage"}


def test_truncated_weights_stay_between_the_outer_bounds():
    batch = batch_of([1.0] * 4, logp_behaviour=log(0.2, 0.2, 0.2, 0.2))
    config = rec.Config(clip="none", weight="truncated", outer_low=0.6, outer_high=2.0)
    gradient, metrics = slopes(config, log(0.02, 0.1, 0.3, 0.9), batch)
    assert gradient == pytest.approx([-0.4, -0.5, -1.5, -3.0])
    assert metrics["weight"] == pytest.approx((0.4 + 0.5 + 1.5 + 3.0) / 4)


def test_the_geometric_ratio_gates_and_weighs_whole_responses():
    """Two responses of two tokens: token ratios (2, 1/2) and (1.5, 1.5) have the geometric means 1 and 1.5."""
    logp = torch.cat([log(0.4, 0.1), log(0.3, 0.3)])
    batch = Batch(
        {
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "advantage": torch.ones(2, 2, dtype=torch.float64),
            "logp_behaviour": log(0.2, 0.2).expand(2, 2),
        }
    )
    for row, expected in ((0, [-1.0, -1.0]), (1, [0.0, 0.0])):
        order = torch.tensor([row, 1 - row])
        assert slopes(rec.Config(ratio="geometric"), logp[order], batch)[0] == expected
    wide = rec.Config(ratio="geometric", weight="importance", clip_high=1.0)
    assert slopes(wide, logp.flip(0), batch)[0] == pytest.approx([-1.5, -1.5])


def test_geometric_importance_weights_are_the_token_form_of_gspo(toy, tools):
    """GSPO's ratio `sg(g) pi / sg(pi)`, clipped, in `min(r A, clip(r) A)`; its gradient is `g A / L` times the score of the
    response where it is not clipped."""
    parameters = toy.parameters.clone().requires_grad_()
    logp_BT, mask_BT, advantage_BT = toy.outputs(parameters)["logp"], toy.batch["mask"], toy.batch["advantage"]
    length_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    u_BT = torch.where(mask_BT, logp_BT - toy.batch["logp_behaviour"], 0.0)
    g_B1 = (u_BT.sum(-1, keepdim=True) / length_B1).exp().detach()
    ratio_BT = g_B1 * (logp_BT - logp_BT.detach()).exp()
    loss_BT = -torch.minimum(ratio_BT * advantage_BT, ratio_BT.clamp(0.9, 1.1) * advantage_BT)
    (torch.where(mask_BT, loss_BT, 0.0).sum(-1, keepdim=True) / length_B1).sum().div(7).backward()
    config = dataclasses.replace(rec.NAMED["REC-GSPO-IS"], clip_low=0.1, clip_high=0.1)
    assert torch.allclose(tools.step_gradient(config.build(), toy, toy.batch), parameters.grad, rtol=1e-6)
    kept_B1 = ~(((g_B1 > 1.1) & (advantage_BT[:, :1] > 0)) | ((g_B1 < 0.9) & (advantage_BT[:, :1] < 0)))
    assert 0 < int(kept_B1.sum()) < len(kept_B1)
    scored = toy.batch.with_columns(advantage=kept_B1 * g_B1 * advantage_BT)
    mean = reinforce.Config(reduction="sequence_mean_token_mean").build()
    assert torch.allclose(tools.step_gradient(mean, toy, scored), parameters.grad, rtol=1e-6)


def test_regularisers_are_not_gated():
    """A token far outside the clip, its advantage pushing outwards: nothing but the regulariser is left."""
    batch, logp, u = batch_of([1.0], logp_behaviour=log(0.1)), log(0.4).requires_grad_(), math.log(4)
    for kind, slope in (("k2", 0.2 * 2 * u), ("forward_kl", -0.2)):
        policy, rest = rec.Config(regulariser=kind, coefficient=0.2).build().terms
        total = sum(term.weight * term.loss({"logp": logp}, batch, {}).loss.sum() for term in (policy, rest))
        assert torch.autograd.grad(total, logp)[0].item() == pytest.approx(slope)


def test_an_advantage_of_zero_counts_as_kept_on_whichever_side():
    config = rec.Config(clip="one_side")
    assert bool(rec.kept(torch.tensor([0.1, 1.0, 9.0]), torch.zeros(3), config).all())
    ring = rec.kept(torch.tensor([0.1, 0.5, 1.0, 1.5, 9.0]), torch.zeros(5), rec.Config(clip="ring"))
    assert ring.tolist() == [True, False, True, False, True]


# OPMD


def test_kimis_gradient_is_that_of_its_surrogate_written_out(toy, tools):
    """`(1 / N) sum over responses of -A log pi(y) + (tau / 2) log(pi(y) / mu(y))^2`, by autograd."""
    tau, num = 0.3, 7
    parameters = toy.parameters.clone().requires_grad_()
    mask_BT = toy.batch["mask"]
    u_BT = torch.where(mask_BT, toy.outputs(parameters)["logp"] - toy.batch["logp_behaviour"], 0.0)
    response_B = -toy.batch["advantage"][:, 0] * u_BT.sum(-1) + tau / 2 * u_BT.sum(-1).square()
    (response_B.sum() / num).backward()
    assert torch.allclose(
        tools.step_gradient(opmd.Config(tau=tau).build(), toy, toy.batch), parameters.grad, rtol=1e-6, atol=1e-9
    )


def test_the_token_penalty_is_the_squared_log_ratio_of_each_token():
    batch = batch_of([1.0, -1.0], logp_behaviour=log(0.1, 0.4))
    gradient, metrics = slopes(opmd.Config(tau=0.5, penalty="token"), log(0.2, 0.2), batch)
    u = math.log(2)
    assert gradient == pytest.approx([-1.0 + 0.5 * u, 1.0 - 0.5 * u])
    assert metrics["squared_log_ratio"] == pytest.approx(u * u)


def test_the_token_penalty_is_half_of_rec_k2(toy, tools):
    kimi = opmd.Config(tau=0.2, penalty="token", reduction="token_mean")
    assert same_gradient(tools, toy, kimi, rec.Config(clip="none", regulariser="k2", coefficient=0.1))


def pairwise_loss(parameters, toy, reward_B, tau, groups):
    """`(1 / K^2) sum over pairs (a_i - a_j)^2`, mean over groups weighted by their size, over 2 tau."""
    mask_BT = toy.batch["mask"]
    s_B = torch.where(mask_BT, toy.outputs(parameters)["logp"] - toy.batch["logp_behaviour"], 0.0).sum(-1)
    a_B = reward_B - tau * s_B
    total = torch.zeros((), dtype=torch.float64)
    for members in groups:
        pairs = sum((a_B[i] - a_B[j]).square() for i, j in itertools.combinations(members, 2))
        total = total + pairs / len(members)
    return total / (2 * tau) / sum(map(len, groups))


def test_the_pairwise_surrogate_has_the_gradient_of_its_pairs(toy, tools):
    """By autograd through every pair, and by finite differences. Row 3 says nothing, so it is no member of its group."""
    tau, groups = 0.4, [(0, 1, 2), (4, 5, 6, 7)]
    reward_B = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    advantage_B = reward_B.clone()
    for members in groups:
        advantage_B[list(members)] -= reward_B[list(members)].mean()
    batch = toy.batch.with_columns(advantage=advantage_B[:, None].expand_as(toy.batch["advantage"]))
    gradient = tools.step_gradient(opmd.Config(form="pairwise", tau=tau).build(), toy, batch)
    parameters = toy.parameters.clone().requires_grad_()
    pairwise_loss(parameters, toy, reward_B, tau, groups).backward()
    assert torch.allclose(gradient, parameters.grad, rtol=1e-6, atol=1e-9)
    make = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(parameters.shape, generator=make, dtype=torch.float64)
        up, down = (pairwise_loss(toy.parameters + h * direction, toy, reward_B, tau, groups) for h in (1e-5, -1e-5))
        assert float((up - down) / 2e-5) == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-9)


def test_pairwise_is_kimi_with_the_log_ratio_centred_in_its_group(toy, tools):
    """A factor common to all responses of a group, such as the partition function, moves kimi and leaves pairwise alone."""
    algorithm = opmd.Config(form="pairwise").build()
    gradient = tools.step_gradient(algorithm, toy, toy.batch)
    first_BT = torch.arange(7)[None] == 0
    raised = toy.batch.with_columns(logp_behaviour=toy.batch["logp_behaviour"] + 0.7 * first_BT)
    assert torch.allclose(tools.step_gradient(algorithm, toy, raised), gradient, rtol=1e-6, atol=1e-8)
    kimi = opmd.Config().build()
    moved, still = (tools.step_gradient(kimi, toy, batch) for batch in (raised, toy.batch))
    assert not torch.allclose(moved, still, rtol=1e-3)


def test_the_simple_form_is_reinforce_over_one_plus_tau(toy, tools):
    simple = tools.step_gradient(opmd.Config(form="simple", tau=1.0).build(), toy, toy.batch)
    plain = tools.step_gradient(reinforce.Config(reduction=SEQUENCES).build(), toy, toy.batch)
    assert torch.allclose(simple, plain / 2, rtol=1e-6)
    assert opmd.Config(form="simple").build().needs == {"mask", "advantage"}


@pytest.mark.parametrize(("tau", "baseline"), [(0.01, 0.9792), (0.1, 0.7921), (1.0, 0.1946), (10.0, 0.1306), (100.0, 0.1256)])
def test_log_average_exp_goes_from_the_best_reward_to_the_mean(tools, tau, baseline):
    algorithm = opmd.Config(tau=tau, baseline="log_average_exp").build()
    advantage_G, _ = algorithm.credit(tools.group_of([1.0] + 7 * [0.0]), {})
    assert advantage_G[0].item() == pytest.approx(1 - baseline, abs=1e-4)
    assert advantage_G[1:].tolist() == pytest.approx([-baseline] * 7, abs=1e-4)


def test_log_average_exp_is_what_makes_the_target_policy_add_up_to_one(tools):
    """With old uniform over a group, `old exp(A / tau)` is a distribution; with the mean as baseline it is not."""
    tau, group = 0.3, [1.0, 0.2, -0.5, 0.0]
    totals = {}
    for baseline in ("log_average_exp", "group_mean"):
        advantage_G, _ = opmd.Config(tau=tau, baseline=baseline).build().credit(tools.group_of(group), {})
        totals[baseline] = (advantage_G.double() / tau).exp().mean().item()
    assert totals["log_average_exp"] == pytest.approx(1.0, abs=1e-5)
    assert totals["group_mean"] > 1.5


def test_only_the_default_parts_go_with_the_pairwise_form():
    for wrong in ({"penalty": "token"}, {"baseline": "log_average_exp"}):
        with pytest.raises(ConfigError, match="opmd"):
            opmd.Config(form="pairwise", **wrong)


def test_kimi_may_begin_every_step_with_a_new_optimiser():
    assert opmd.Config(forget_moments=True).build().forget_moments
    assert not opmd.Config().build().forget_moments


# AsymRE


def test_asymre_credits_what_is_above_the_shifted_mean(tools):
    advantage_G, _ = asymre.Config(shift=-0.25).build().credit(tools.group_of([1.0, 0.0, 0.0, 0.0]), {})
    assert advantage_G.tolist() == [1.0, 0.0, 0.0, 0.0]
    alone, _ = asymre.Config(shift=-0.25).build().credit(tools.group_of([1.0]), {})
    assert alone.tolist() == [0.25]


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean_token_mean", SEQUENCES])
def test_a_shift_of_the_baseline_is_a_forward_kl_regulariser(toy, tools, reduction):
    """Per token, whatever the lengths: `-(A + b) logp = -A logp + b (-logp)`, and `-logp` is a forward KL to the sampler."""
    shifted = toy.batch["advantage"] + 0.3
    left = tools.step_gradient(asymre.Config(reduction=reduction).build(), toy, toy.batch.with_columns(advantage=shifted))
    config = rec.Config(clip="none", regulariser="forward_kl", coefficient=0.3, reduction=reduction)
    assert torch.allclose(left, tools.step_gradient(config.build(), toy, toy.batch), rtol=1e-6)


def test_forward_kl_is_the_gradient_of_the_kl_from_the_sampler():
    """By enumeration: the expected gradient of `-log pi` under mu is that of KL(mu || pi)."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    kl = (mu * (mu.log() - logits.log_softmax(-1))).sum()
    (expected,) = torch.autograd.grad(kl, logits)
    _, term = rec.Config(clip="none", regulariser="forward_kl").build().terms
    loss = term.loss({"logp": logits.log_softmax(-1)[None]}, batch_of([0.0, 0.0, 0.0]), {}).loss[0]
    (found,) = torch.autograd.grad((mu * loss).sum(), logits)
    assert torch.allclose(found, expected)


def test_asymre_without_a_shift_is_reinforce(toy, tools):
    assert same_gradient(tools, toy, asymre.Config(shift=0.0), reinforce.Config())
    group = tools.group_of([0.3, -1.0, 0.7])
    shiftless, plain = (c.build().credit(group, {})[0] for c in (asymre.Config(shift=0.0), reinforce.Config()))
    assert torch.equal(shiftless, plain)


# RED


def test_red_drops_failures_until_they_are_no_more_than_the_successes(tools):
    """Two of eight are right: two and two are kept, with credits of +-1/2; the rest has 0."""
    advantage_G, _ = red.Config().build().credit(tools.group_of([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]), {})
    assert advantage_G[[0, 3]].tolist() == [0.5, 0.5]
    assert sorted(advantage_G[[1, 2, 4, 5, 6, 7]].tolist()) == [-0.5, -0.5, 0.0, 0.0, 0.0, 0.0]


def test_red_leaves_a_balanced_group_as_it_is(tools):
    for rewards in ([1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.4, 1.0, 0.2]):
        advantage_G, _ = red.Config().build().credit(tools.group_of(rewards), {})
        plain, _ = reinforce.Config().build().credit(tools.group_of(rewards), {})
        assert torch.equal(advantage_G, plain)


def test_what_red_drops_follows_from_its_seed_and_the_item(tools):
    group = tools.group_of([1.0] + 15 * [0.0])

    def kept(item=0, seed=0, uid="p"):
        changed = dataclasses.replace(group, item=item, prompt=Prompt(uid, "?"))
        return tuple(red.Config(seed=seed).build().credit(changed, {})[0].nonzero().flatten().tolist())

    assert kept() == kept()
    assert len({kept(item) for item in range(30)}) > 8
    assert len({kept(seed=seed) for seed in range(30)}) > 8
    assert len({kept(uid=str(i)) for i in range(30)}) > 8
    counts = torch.tensor([kept(item) for item in range(3000)]).flatten().bincount(minlength=16)
    assert counts[0] == 3000
    assert counts[1:].min() > 150 and counts[1:].max() < 250


def test_red_normalises_by_those_it_keeps(tools):
    algorithm = red.Config(normalise="population_std").build()
    advantage_G, _ = algorithm.credit(tools.group_of([1.0, 0.0, 0.0, 0.0, 0.0]), {})
    assert sorted(advantage_G.tolist()) == pytest.approx([-1.0, 0.0, 0.0, 0.0, 1.0], abs=1e-5)


def test_red_weighs_by_the_exponential_of_the_advantage(tools):
    group = tools.group_of([1.0, 0.0, 0.0, 0.0])
    advantage_G, _ = red.Config(mode="weight", temperature=0.5).build().credit(group, {})
    assert advantage_G.tolist() == pytest.approx([0.75 * math.exp(1.5)] + 3 * [-0.25 * math.exp(-0.5)])
    hot, _ = red.Config(mode="weight", temperature=1e6).build().credit(group, {})
    assert hot.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25], rel=1e-5)


def test_a_dropped_response_stays_in_the_denominator(toy, tools):
    """Its advantage is 0: the gradient of the others is divided by all tokens."""
    gone_B1 = (torch.arange(8) % 2 == 0)[:, None]
    advantage_BT = torch.where(gone_B1, 0.0, toy.batch["advantage"])
    kept = tools.step_gradient(red.Config().build(), toy, toy.batch.with_columns(advantage=advantage_BT))
    alone = toy.batch.with_columns(mask=toy.batch["mask"] & ~gone_B1)
    share = float(alone["mask"].sum() / toy.batch["mask"].sum())
    assert torch.allclose(kept, share * tools.step_gradient(red.Config().build(), toy, alone), rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (rec, {"clip_low": -0.1}, "clip_low, clip_high and outer_high >= 0"),
        (rec, {"clip": "ring", "outer_low": 0.1}, "a ring's outer bounds are not inside its clip"),
        (rec, {"coefficient": 0.0}, "coefficient > 0"),
        (opmd, {"tau": 0.0}, "tau > 0"),
        (asymre, {"shift": math.inf}, "shift is finite"),
        (red, {"temperature": 0.0}, "temperature > 0"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
