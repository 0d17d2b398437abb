"""What is particular to the methods that choose among given responses: A-LoL by advantage, SOPHIA by rules.

Shapes: B trajectories, T action tokens, K reports, N reasonings of each.
"""

import pytest
import torch

from freerun.algorithms.language import alol, sft, sophia
from freerun.errors import ConfigError
from freerun.types import Batch


def log(*values):
    return torch.tensor([values], dtype=torch.float64).log()


def slopes(algorithm, logp_BT, batch, state=None, *, term=0):
    """Derivative of a term's element-wise loss with respect to each log-prob, and the values of its metrics."""
    logp_BT = logp_BT.clone().requires_grad_()
    out = algorithm.terms[term].loss({"logp": logp_BT}, batch, algorithm.init() if state is None else state)
    out.loss.sum().backward()
    return logp_BT.grad[0].tolist(), {name: metric.value for name, metric in out.metrics.items()}


# A-LoL


def offline(reward, value, reference):
    return Batch(
        {
            "mask": torch.ones_like(reference, dtype=torch.bool),
            "reward": torch.as_tensor(reward, dtype=torch.float64),
            "value_reference": torch.as_tensor(value, dtype=torch.float64),
            "logp_reference": reference,
        }
    )


@pytest.mark.parametrize(
    ("changes", "gradient"),
    [
        # Token ratios 2 and 0.5 / 0.4; advantage 0.8 - 0.3; their product 2.5 is above 1 + c.
        ({}, [-0.5 * 1.9, -0.5 * 1.9]),
        ({"clip": None}, [-0.5 * 2.5, -0.5 * 2.5]),
        ({"clip": 0.0}, [-0.5, -0.5]),
        ({"ratio": "token"}, [-0.5 * 1.9, -0.5 * 1.25]),
        ({"ratio": "none"}, [-0.5, -0.5]),
        ({"ratio": "none", "kl_coefficient": 0.2}, [-0.5 + 0.2, -0.5 + 0.2]),
        ({"signal": "squared_advantage"}, [-0.25 * 1.9, -0.25 * 1.9]),
        ({"signal": "reward"}, [-0.8 * 1.9, -0.8 * 1.9]),
        ({"signal": "reward", "ratio": "none"}, [-0.8, -0.8]),
    ],
)
def test_alol_and_its_variants_by_hand(changes, gradient):
    batch = offline([0.8], [0.3], log(0.2, 0.4))
    assert slopes(alol.Config(**changes).build(), log(0.4, 0.5), batch)[0] == pytest.approx(gradient)


def test_alol_learns_nothing_from_what_is_worse_than_expected():
    batch = offline([0.2], [0.3], log(0.2, 0.4))
    gradient, metrics = slopes(alol.Config().build(), log(0.4, 0.5), batch)
    assert gradient == [0.0, 0.0]
    assert metrics["above_value"] == 0.0
    assert slopes(alol.Config(signal="reward").build(), log(0.4, 0.5), batch)[0] == pytest.approx([-0.2 * 1.9, -0.2 * 1.9])


def test_alol_at_the_reference_is_fine_tuning_weighted_by_the_advantage(toy, tools):
    batch = toy.on_policy()
    advantage_BT = (batch["reward"] - batch["value_reference"]).clamp(min=0)[:, None].expand_as(batch["mask"])
    parameters = toy.parameters.clone().requires_grad_()
    mask_BT = batch["mask"]
    (-(advantage_BT * toy.outputs(parameters)["logp"])[mask_BT].sum() / mask_BT.any(-1).sum()).backward()
    for ratio in ("response", "token", "none"):
        assert torch.allclose(tools.step_gradient(alol.Config(ratio=ratio).build(), toy, batch), parameters.grad, rtol=1e-12)


def test_the_product_of_clipped_token_ratios_is_not_the_clipped_ratio_of_the_response():
    reference, current = log(0.1, 0.5), log(0.5, 0.1)
    batch = offline([1.0], [0.0], reference)
    assert slopes(alol.Config().build(), current, batch)[0] == pytest.approx([-1.0, -1.0])
    assert slopes(alol.Config(ratio="token").build(), current, batch)[0] == pytest.approx([-1.9, -0.2])


def test_a_constant_value_decides_which_responses_count_and_by_how_much_but_nothing_else():
    reference = log(0.2, 0.4)
    for value, expected in ((0.0, 0.8), (0.5, 0.3), (0.8, 0.0), (2.0, 0.0)):
        gradient, _ = slopes(alol.Config(ratio="none").build(), reference, offline([0.8], [value], reference))
        assert gradient == pytest.approx([-expected, -expected])


def test_alol_asks_for_a_value_only_where_an_advantage_is_taken():
    def needed(**changes):
        return alol.Config(**changes).build().needs - {"mask", "reward"}

    assert needed() == {"value_reference", "logp_reference"}
    assert needed(ratio="none") == {"value_reference"}
    assert needed(ratio="none", kl_coefficient=0.1) == {"value_reference", "logp_reference"}
    assert needed(signal="reward") == {"logp_reference"}
    assert needed(signal="reward", ratio="none") == frozenset()


SAMPLER_A, REWARD_A = torch.tensor([0.3, 0.6, 0.1]), torch.tensor([0.0, 0.8, 1.0])


def policies_after(config, steps, *, seeds=3, batch_size=512):
    """Mean over seeds of the policy of a three-armed bandit after each number of steps, on the data set's own draws, with the
    exact value .58 of the reference: plain gradient descent at 0.2."""
    (term,) = config.build().terms
    make = torch.Generator().manual_seed(0)
    logits_SA = SAMPLER_A.log().repeat(seeds, 1).requires_grad_()
    seed_N, found = torch.arange(seeds).repeat_interleave(batch_size), []
    for step in range(1, max(steps) + 1):
        arm_N = torch.multinomial(SAMPLER_A, len(seed_N), replacement=True, generator=make)
        reward_N = REWARD_A[arm_N]
        batch = offline(reward_N, torch.full_like(reward_N, 0.58), SAMPLER_A.log()[arm_N][:, None])
        out = term.loss({"logp": logits_SA.log_softmax(-1)[seed_N, arm_N][:, None]}, batch, {})
        (gradient_SA,) = torch.autograd.grad(out.loss.sum() / batch_size, logits_SA)
        logits_SA.data -= 0.2 * gradient_SA
        if step in steps:
            found.append(logits_SA.detach().softmax(-1).mean(0))
    return found


def test_alol_on_the_bandit_is_after_200_steps_where_the_reference_simulation_is():
    (policy_A,) = policies_after(alol.Config(), (200,))
    assert policy_A.tolist() == pytest.approx((0.081, 0.641, 0.278), abs=0.003)


@pytest.mark.slow
def test_alol_on_the_bandit_settles_where_its_clipped_weights_balance():
    """`pi_i ~ mu_i A_i w_i` with w the clipped ratio: (.132 pi / .6) against (.042 x 1.9), which is (0, .635, .365); without
    ratio `mu_i A_i`, which is (0, .759, .241). The reference simulation found (.004, .632, .364) and J .870."""
    (policy_A,) = policies_after(alol.Config(), (4000,))
    assert policy_A.tolist() == pytest.approx((0.004, 0.632, 0.364), abs=0.006)
    assert float(policy_A @ REWARD_A) == pytest.approx(0.870, abs=0.003)
    (policy_A,) = policies_after(alol.Config(ratio="none"), (4000,))
    assert policy_A.tolist() == pytest.approx((0.0, 0.759, 0.241), abs=0.008)


# SOPHIA


def chosen(correct_KN, length_KN, **rules):
    """Places (report, reasoning) with reward 1."""
    return sophia.Selection(**rules).rewards(torch.tensor(correct_KN), torch.tensor(length_KN)).nonzero().tolist()


CORRECT = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]
LENGTH = [[9, 7, 8, 7], [5, 6, 4, 1], [2, 1, 1, 1]]


@pytest.mark.parametrize(
    ("rules", "places"),
    [
        # Shares right of the reports: 1, .75, .25. Three quarters is not more than three quarters.
        ({}, [[0, 1]]),
        ({"alpha": 0.7}, [[1, 2]]),
        ({"alpha": 0.2}, [[2, 0]]),
        ({"shortest": False}, [[0, 0]]),
        ({"report": False}, [[2, 0]]),
        ({"report": False, "shortest": False}, [[0, 0]]),
        ({"alpha": 0.7, "keep": 3}, [[1, 0], [1, 1], [1, 2]]),
        ({"alpha": 0.7, "correct": False}, [[1, 3]]),
        ({"report": False, "correct": False, "shortest": False}, [[0, 0]]),
    ],
)
def test_sophia_keeps_the_shortest_right_answers_from_reports_that_are_right_more_often_than_alpha(rules, places):
    assert chosen(CORRECT, LENGTH, **rules) == places


def test_sophia_keeps_nothing_where_nothing_is_eligible():
    assert chosen([[0, 0], [0, 0]], [[1, 2], [3, 4]]) == []
    assert chosen([[1, 0], [0, 1]], [[1, 2], [3, 4]]) == []


def test_equal_lengths_are_decided_by_the_order_of_reports_and_reasonings():
    same = [[3, 3], [3, 3]]
    assert chosen([[1, 1], [1, 1]], same) == [[0, 0]]
    assert chosen([[1, 1], [1, 1]], same, keep=3) == [[0, 0], [0, 1], [1, 0]]


def test_a_report_is_worth_the_share_of_right_answers_drawn_from_it():
    assert sophia.report_reward(torch.tensor(CORRECT)).tolist() == [1.0, 0.75, 0.25]


def test_sophia_on_selected_responses_is_supervised_fine_tuning_and_without_reward_has_no_gradient(toy, tools):
    ones = torch.ones_like(toy.batch["advantage"])
    left = tools.step_gradient(sophia.Config().build(), toy, toy.batch.with_columns(advantage=ones))
    assert torch.equal(left, tools.step_gradient(sft.Config().build(), toy, toy.batch))
    zero = tools.step_gradient(sophia.Config().build(), toy, toy.batch.with_columns(advantage=0 * ones))
    assert torch.equal(zero, torch.zeros_like(zero))


# Configs


@pytest.mark.parametrize(
    ("section", "broken", "rule"),
    [
        (alol.Config, {"clip": -0.1}, "clip >= 0"),
        (alol.Config, {"kl_coefficient": -1.0}, "kl_coefficient >= 0"),
        (sophia.Selection, {"alpha": 1.0}, "0 <= alpha < 1"),
        (sophia.Selection, {"keep": 0}, "keep >= 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(section, broken, rule):
    with pytest.raises(ConfigError) as caught:
        section(**broken)
    assert caught.value.expected == rule
