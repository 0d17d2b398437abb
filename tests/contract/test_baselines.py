"""The baselines that everybody expects: PPO with a critic, the relatives of GRPO, REINFORCE with other baselines.

Shapes: B trajectories, T action tokens, S states of the toy policy, V its vocabulary.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from freerun.algorithms.language import (
    aipo,
    cispo,
    dapo,
    drgrpo,
    grpo,
    gspo,
    ppo,
    reinforce,
    reinforce_pp,
    rloo,
)
from freerun.errors import ConfigError
from freerun.types import Batch, Stop


def log(*values):
    return torch.tensor([values], dtype=torch.float64).log()


def batch_of(advantage, **columns):
    advantage_BT = torch.tensor([advantage], dtype=torch.float64)
    return Batch({"mask": torch.ones_like(advantage_BT, dtype=torch.bool), "advantage": advantage_BT, **columns})


def slopes(config, outputs, batch, term=0):
    """Derivative of a term's element-wise loss with respect to its output, and the values of its metrics."""
    algorithm = config.build()
    chosen = algorithm.terms[term]
    outputs = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    out = chosen.loss(outputs, batch, algorithm.init())
    out.loss.sum().backward()
    return outputs[chosen.outputs[0]].grad[0].tolist(), {name: metric.value for name, metric in out.metrics.items()}


def same_gradient(tools, toy, left, right, **columns):
    batch = toy.batch.with_columns(**columns)
    gradients = [tools.step_gradient(config.build(), toy, batch) for config in (left, right)]
    return torch.allclose(*gradients, rtol=1e-6, atol=1e-8)


# PPO


def test_ppo_spreads_the_reward_over_the_tokens_by_the_critics_values():
    """Values .25, .5, reward 1 at the end: errors .25 and .5, advantages .25 + .5 * .5 and .5, returns .75 and 1."""
    batch = Batch(
        {
            "mask": torch.tensor([[True, True]]),
            "reward": torch.tensor([1.0]),
            "values": torch.tensor([[0.25, 0.5]]),
            "logp_behaviour": log(0.5, 0.5).float(),
            "logp_reference": log(0.5, 0.25).float(),
        }
    )
    made = ppo.Config(decay=0.5, whiten=False).build().prepare(batch, {})
    assert made["advantage"].tolist() == [[0.5, 0.5]]
    assert made["returns"].tolist() == [[0.75, 1.0]]
    # The second token is twice as likely as under the reference: a penalty of log 2 there.
    made = ppo.Config(decay=0.5, whiten=False, kl_coefficient=1.0).build().prepare(batch, {})
    assert made["advantage"].tolist()[0] == pytest.approx([0.5 - 0.5 * math.log(2), 0.5 - math.log(2)])
    white = ppo.Config(decay=0.5).build().prepare(batch.with_columns(values=torch.tensor([[0.0, 0.5]])), {})["advantage"]
    assert white.tolist()[0] == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-3)


def test_ppo_with_a_critic_that_knows_nothing_is_reinforce_with_the_reward_on_every_token(toy, tools):
    """Values 0, no decay of errors, no whitening: each token is credited with the reward."""
    blind = toy.batch.with_columns(values=torch.zeros_like(toy.batch["values"]))
    config = ppo.Config(decay=1.0, whiten=False)
    made = tools.prepared(config.build(), blind)
    expected = torch.where(toy.batch["mask"], toy.batch["reward"][:, None], 0.0)
    assert torch.allclose(made["advantage"], expected)


def test_ppo_with_the_same_advantages_is_grpo(toy, tools):
    algorithm = ppo.Config().build()
    batch = tools.prepared(algorithm, toy.batch)
    parameters = [toy.parameters.clone().requires_grad_() for _ in range(2)]
    other = grpo.Config(reduction="token_mean").build()
    for point, method in zip(parameters, (algorithm, other), strict=True):
        loss = method.terms[0].loss(toy.outputs(point), batch, {}).loss
        loss[batch["mask"]].mean().backward()
    assert torch.equal(parameters[0].grad, parameters[1].grad)


def test_the_critic_of_ppo_is_fitted_to_the_returns_and_a_value_that_moved_far_enough_waits():
    """Errors 1, 1, -2, from values before of 2, 1.5, 1: the second moved by more than .2 towards its return and stops; the
    third moved away from its return, and keeps its gradient."""
    before, now, target = ([[2.0, 1.5, 1.0]], [[2.0, 2.0, 0.0]], [[1.0, 3.0, 2.0]])
    batch = batch_of([0.0, 0.0, 0.0], values=torch.tensor(before), returns=torch.tensor(target))
    gradient, metrics = slopes(ppo.Config(), {"values": torch.tensor(now)}, batch, term=1)
    assert gradient == pytest.approx([1.0, 0.0, -2.0])
    assert metrics == pytest.approx({"value": 4 / 3, "return": 2.0})
    gradient, _ = slopes(ppo.Config(value_clip=None), {"values": torch.tensor(now)}, batch, term=1)
    assert gradient == pytest.approx([1.0, -1.0, -2.0])


def test_ppo_needs_the_critic_of_before_only_to_clip_values():
    assert "values" in ppo.Config().build().needs
    assert "values" not in ppo.Config(value_clip=None).build().needs
    assert ppo.Config().build().has_critic


def test_ppo_bounds_the_loss_of_negative_advantages_with_a_dual_clip():
    outputs, batch = {"logp": log(0.8, 0.8)}, batch_of([-1.0, 1.0], logp_behaviour=log(0.2, 0.8))
    assert slopes(ppo.Config(), outputs, batch)[0] == pytest.approx([4.0, -1.0])
    assert slopes(ppo.Config(dual_clip=3.0), outputs, batch)[0] == pytest.approx([0.0, -1.0])


# Dr.GRPO


def test_drgrpo_is_grpo_without_its_divisions(toy, tools):
    grpo_without = grpo.Config(normalise="none", reduction="sequence_mean_token_sum").build()
    gradient = tools.step_gradient(grpo_without, toy, toy.batch)
    assert torch.allclose(tools.step_gradient(drgrpo.Config(length=7).build(), toy, toy.batch), gradient / 7, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_drgrpo_is_unbiased_up_to_a_constant_where_grpo_is_not(tools, size):
    """All groups of a policy over four responses of lengths 1 to 4 (token i of a response is forced, so only the choice of the
    response has a gradient): the expected gradient against that of the expected reward, direction and size."""
    prob_V = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    reward_V = [0.0, 1.0, 0.0, 0.5]
    score_VV = torch.eye(4, dtype=torch.float64) - prob_V
    truth = (prob_V * torch.tensor(reward_V, dtype=torch.float64)) @ score_VV

    def expected(algorithm, divided):
        total = torch.zeros(4, dtype=torch.float64)
        for chosen in itertools.product(range(4), repeat=size):
            advantage_G, _ = algorithm.credit(tools.group_of([reward_V[i] for i in chosen]), {})
            for advantage, i in zip(advantage_G.double(), chosen, strict=True):
                weight = prob_V[list(chosen)].prod() / size / (i + 1 if divided else 1)
                total += weight * advantage * score_VV[i]
        return total

    unbiased = expected(drgrpo.Config().build(), divided=False)
    assert torch.allclose(unbiased, (size - 1) / size * truth, rtol=1e-5)
    for algorithm, divided in ((grpo.Config(), True), (grpo.Config(), False), (grpo.Config(normalise="none"), True)):
        biased = expected(algorithm.build(), divided)
        assert torch.cosine_similarity(biased, truth, dim=0) < 0.999


def test_a_long_wrong_answer_costs_as_much_per_token_as_a_short_one(toy, tools):
    """Under GRPO the second response, three times as long, loses a third per token."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = Batch({"mask": mask, "advantage": torch.full((2, 3), -1.0), "logp_behaviour": torch.zeros(2, 3)})
    slopes_of = {}
    for name, config in {"drgrpo": drgrpo.Config(length=1), "grpo": grpo.Config()}.items():
        logp_BT = torch.zeros(2, 3, requires_grad=True)
        tools.step_loss(config.build(), [({"logp": logp_BT}, batch)])[0].backward()
        slopes_of[name] = logp_BT.grad[:, 0].tolist()
    assert slopes_of["drgrpo"] == pytest.approx([0.5, 0.5])
    assert slopes_of["grpo"] == pytest.approx([0.5, 0.5 / 3])


# DAPO


def test_dapo_takes_a_point_from_a_response_that_needs_the_whole_budget():
    config = dapo.Config(max_length=20, buffer=4)
    penalties = dapo.length_penalty([1, 16, 17, 18, 20, 25], config).tolist()
    assert penalties == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_dapo_gives_equal_rewards_credit_by_length_near_the_budget(tools):
    """The responses of `group_of` have 1, 2, 3 and 4 tokens."""
    algorithm = dapo.Config(max_length=4, buffer=2).build()
    advantage_G, _ = algorithm.credit(tools.group_of([1.0, 1.0, 1.0, 1.0]), {})
    # Rewards 1, 1, .5, 0: mean .625, deviations .375, .375, -.125, -.625, std with n - 1 = sqrt(.6875 / 3).
    assert advantage_G.tolist() == pytest.approx([d / math.sqrt(0.6875 / 3) for d in (0.375, 0.375, -0.125, -0.625)], abs=1e-5)
    far = dapo.Config().build().credit(tools.group_of([1.0, 0.0, 0.0, 1.0]), {})[0]
    assert torch.equal(far, grpo.Config().build().credit(tools.group_of([1.0, 0.0, 0.0, 1.0]), {})[0])


def test_dapo_can_leave_responses_that_were_cut_off_without_credit(tools):
    group = tools.group_of([1.0, 0.0, 1.0, 0.0])
    cut = dataclasses.replace(group.trajectories[1], stop=Stop.LENGTH)
    group = dataclasses.replace(group, trajectories=(group.trajectories[0], cut, *group.trajectories[2:]))
    advantage_G, _ = dapo.Config(overlong="filter").build().credit(group, {})
    plain_G, _ = dapo.Config(overlong="none").build().credit(group, {})
    assert advantage_G.tolist() == [plain_G[0].item(), 0.0, plain_G[2].item(), plain_G[3].item()]


def test_dapo_is_grpo_with_wider_bounds_and_a_mean_over_tokens(toy, tools):
    assert same_gradient(tools, toy, dapo.Config(), grpo.Config(clip_high=0.28, reduction="token_mean"))


# RLOO


def test_rloo_is_reinforce_with_the_mean_of_the_others_over_whole_responses(toy, tools):
    other = reinforce.Config(baseline="leave_one_out", reduction="sequence_mean_token_sum")
    assert same_gradient(tools, toy, rloo.Config(), other)
    group = tools.group_of([3.0, 1.0, 2.0])
    assert rloo.Config().build().credit(group, {})[0].tolist() == [1.5, -1.5, 0.0]


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_is_unbiased_and_varies_less_than_no_baseline(tools, size):
    """All groups of a four-armed bandit, by enumeration."""
    prob_V = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    reward_V = [1.0, 2.0, 1.5, 3.0]
    score_VV = torch.eye(4, dtype=torch.float64) - prob_V
    truth = (prob_V * torch.tensor(reward_V, dtype=torch.float64)) @ score_VV
    spread = {}
    for name, config in {"rloo": rloo.Config(), "none": reinforce.Config(baseline="none")}.items():
        mean, square = torch.zeros(4, dtype=torch.float64), 0.0
        for chosen in itertools.product(range(4), repeat=size):
            advantage_G, _ = config.build().credit(tools.group_of([reward_V[i] for i in chosen]), {})
            gradient = (advantage_G.double()[:, None] * score_VV[list(chosen)]).mean(0)
            mean += prob_V[list(chosen)].prod() * gradient
            square += prob_V[list(chosen)].prod() * gradient.square().sum()
        assert torch.allclose(mean, truth, rtol=1e-5)
        spread[name] = float(square - mean.square().sum())
    assert spread["rloo"] < spread["none"] / 2


def test_the_kl_of_rloo_is_a_penalty_with_a_baseline_of_its_own():
    """Two siblings of two tokens and one: log-ratios to the reference .3 + .1 and -.2, so penalties differ by .6 beta."""
    batch = Batch(
        {
            "mask": torch.tensor([[True, True], [True, False]]),
            "advantage": torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),
            "group": torch.tensor([0, 0]),
            "logp_behaviour": torch.tensor([[-1.0, -1.0], [-1.0, 7.0]]),
            "logp_reference": torch.tensor([[-1.3, -1.1], [-0.8, 9.0]]),
        }
    )
    made = rloo.Config(kl_coefficient=0.5).build().prepare(batch, {})["advantage"]
    assert made[0].tolist() == pytest.approx([0.7, 0.7])
    assert made[1, 0].item() == pytest.approx(-0.7)


def test_rloo_can_clip_the_ratio_of_a_whole_response():
    """Ratios of responses: 1.1 * 1.05 inside the clip, 1.1 * 1.2 outside for a positive advantage only."""
    proximal = log(0.5, 0.5)
    config = rloo.Config(clip="sequence")
    inside, metrics = slopes(config, {"logp": log(0.55, 0.525)}, batch_of([2.0, 2.0], logp_behaviour=proximal))
    assert inside == pytest.approx([-2 * 1.155] * 2)
    assert metrics == pytest.approx({"proximal_ratio": 1.155, "ratio/clipped": 0.0})
    far = {"logp": log(0.55, 0.6)}
    assert slopes(config, far, batch_of([2.0, 2.0], logp_behaviour=proximal))[0] == [0.0, 0.0]
    assert slopes(config, far, batch_of([-2.0, -2.0], logp_behaviour=proximal))[0] == pytest.approx([2 * 1.32] * 2)


# REINFORCE++


def test_reinforce_pp_normalises_over_the_tokens_of_the_step():
    """Credits 3 and 0 on two tokens and one: mean 2, deviations 1, 1, -2, variance 3."""
    batch = Batch(
        {
            "mask": torch.tensor([[True, True], [True, False]]),
            "advantage": torch.tensor([[3.0, 3.0], [0.0, 9.0]]),
            "logp_behaviour": torch.tensor([[-1.0, -1.0], [-1.0, 0.0]]),
            "logp_reference": torch.tensor([[-2.0, -3.0], [-1.0, 0.0]]),
        }
    )
    made = reinforce_pp.Config().build().prepare(batch, {})["advantage"]
    assert made.flatten().tolist() == pytest.approx([3**-0.5, 3**-0.5, -2 * 3**-0.5, 0.0], abs=1e-6)
    # k1 = 1, 2: from the first token on 3, from the second on 2. Credits 0, 1, 0: mean 1/3, variance 1/3.
    made = reinforce_pp.Config(kl_coefficient=1.0).build().prepare(batch, {})["advantage"]
    assert made.flatten().tolist() == pytest.approx([-(3**-0.5), 2 * 3**-0.5, -(3**-0.5), 0.0], abs=1e-6)


@pytest.mark.parametrize(("baseline", "credit"), [("none", [3.0, 1.0, 2.0]), ("group_mean", [1.0, -1.0, 0.0])])
def test_reinforce_pp_credit_by_hand(tools, baseline, credit):
    algorithm = reinforce_pp.Config(baseline=baseline).build()
    assert algorithm.credit(tools.group_of([3.0, 1.0, 2.0]), {})[0].tolist() == credit
    assert algorithm.group_baseline == (baseline == "group_mean")


def test_reinforce_pp_can_have_its_kl_in_the_loss_where_k2_has_the_gradient_of_the_kl(toy, tools):
    algorithm = reinforce_pp.Config(kl_coefficient=0.5, kl="loss").build()
    assert [term.name for term in algorithm.terms] == ["policy", "kl"]
    assert "logp_reference" in algorithm.needs and "logp_reference" not in algorithm.uses
    u_BT = (toy.outputs(toy.parameters)["logp"] - toy.batch["logp_reference"]).detach()
    still = toy.batch.with_columns(advantage=torch.zeros_like(toy.batch["advantage"]))
    scores = toy.batch.with_columns(advantage=-0.5 * u_BT)
    expected = tools.step_gradient(reinforce.Config().build(), toy, scores)
    assert torch.allclose(tools.step_gradient(algorithm, toy, still), expected, rtol=1e-6, atol=1e-9)


# GSPO


def test_gspo_below_the_clip_has_the_gradient_of_the_root_ratio_times_the_mean_score(toy, tools):
    """`(1 / L) g A sum_t score_t`, g the geometric mean of the response's ratios; identity 7."""
    parameters = toy.parameters.clone().requires_grad_()
    logp_BT, mask_BT = toy.outputs(parameters)["logp"], toy.batch["mask"]
    num_B = mask_BT.sum(-1).clamp(min=1)
    u_BT = torch.where(mask_BT, logp_BT - toy.batch["logp_behaviour"], 0.0).detach()
    weight_B = (u_BT.sum(-1) / num_B).exp() * toy.batch["advantage"][:, 0] / num_B / mask_BT.any(-1).sum()
    (-weight_B[:, None] * torch.where(mask_BT, logp_BT, 0.0)).sum().backward()
    gradient = tools.step_gradient(gspo.Config(clip_low=1.0, clip_high=1e6).build(), toy, toy.batch)
    assert torch.allclose(gradient, parameters.grad, rtol=1e-6)


def test_gspo_clips_a_response_as_a_whole():
    """Ratios 1.1 and .95 have the root 1.022: outside a clip of .02 for a positive advantage, inside for a negative one."""
    proximal, outputs = log(0.5, 0.5), {"logp": log(0.55, 0.475)}
    config, root = gspo.Config(clip_low=0.02, clip_high=0.02), (1.1 * 0.95) ** 0.5
    assert slopes(config, outputs, batch_of([1.0, 1.0], logp_behaviour=proximal))[0] == [0.0, 0.0]
    gradient, metrics = slopes(config, outputs, batch_of([-1.0, -1.0], logp_behaviour=proximal))
    assert gradient == pytest.approx([root, root])
    assert metrics == pytest.approx({"sequence_ratio": root, "ratio/clipped": 0.0})


def test_gspo_of_responses_of_one_token_is_grpo(toy, tools):
    mask_BT = toy.batch["mask"] & (torch.arange(7) == 0)
    wide = {"clip_low": 0.2, "clip_high": 0.2}
    assert same_gradient(tools, toy, gspo.Config(**wide), grpo.Config(**wide), mask=mask_BT)


# CISPO


def test_cispo_weighs_between_its_bounds_and_never_drops_a_token():
    behaviour, current = log(0.4, 0.1, 0.1, 0.1), log(0.2, 0.12, 0.8, 0.8)
    batch = batch_of([1.0, 1.0, 1.0, -1.0], logp_behaviour=behaviour)
    gradient, metrics = slopes(cispo.Config(clip_low=0.2, clip_high=0.5), {"logp": current}, batch)
    assert gradient == pytest.approx([-0.8, -1.2, -1.5, 1.5])
    assert metrics == pytest.approx({"weight": (0.8 + 1.2 + 1.5 + 1.5) / 4, "ratio/clipped": 0.75})


def test_cispo_without_a_lower_bound_is_aipo(toy, tools):
    pair = (cispo.Config(clip_low=1.0, clip_high=0.3), aipo.Config(rho=1.3))
    assert torch.equal(*(tools.step_gradient(config.build(), toy, toy.batch) for config in pair))


def test_cispo_keeps_a_rare_token_that_became_likely_where_a_clip_drops_it():
    """From 1% to 2% the ratio is 2: no gradient in GRPO, 1.28 times the score in CISPO."""
    outputs, batch = {"logp": log(0.02)}, batch_of([1.0], logp_behaviour=log(0.01))
    assert slopes(grpo.Config(), outputs, batch)[0] == [0.0]
    assert slopes(cispo.Config(), outputs, batch)[0] == pytest.approx([-1.28])


# Configs and data


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (ppo, {"decay": 1.5}, "0 <= decay <= 1"),
        (ppo, {"value_clip": 0.0}, "value_clip > 0"),
        (ppo, {"entropy_coefficient": -1.0}, "coefficients >= 0"),
        (ppo, {"dual_clip": 0.5}, "dual_clip > 1"),
        (drgrpo, {"length": 0}, "length >= 1"),
        (dapo, {"buffer": 8, "max_length": 4}, "1 <= buffer <= max_length"),
        (rloo, {"kl_coefficient": -0.1}, "kl_coefficient >= 0"),
        (reinforce_pp, {"clip_high": -0.1}, "clip_high >= 0"),
        (gspo, {"clip_low": 2.0}, "0 <= clip_low <= 1"),
        (cispo, {"clip_low": -0.1}, "0 <= clip_low <= 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
    assert method.__name__ in caught.value.what
