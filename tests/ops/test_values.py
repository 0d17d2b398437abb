"""Values and credit in control, by hand and by identities.

Shapes: B rows, T steps of a chunk, N environments, K actions.
"""

import math

import pytest
import torch

from freerun.ops import values


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def column(*numbers):
    return row(*numbers)[:, None]


def test_a_target_stops_where_the_discount_is_zero():
    target = values.td_target(row(1.0, 2.0), row(0.9, 0.0), row(10.0, math.inf).nan_to_num(posinf=1e30))
    assert target.tolist() == [10.0, 2.0]


def test_members_of_an_ensemble_have_losses_of_their_own():
    assert values.squared_errors(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([2.0, -1.0])).tolist() == [2.0, 2.0]


def test_an_expectile_weighs_what_lies_above_and_below():
    assert values.expectile(row(2.0, -2.0), 0.7).tolist() == pytest.approx([2.8, 1.2])
    assert values.expectile(row(2.0, -2.0), 0.5).tolist() == pytest.approx([2.0, 2.0])


def test_the_minimum_of_the_expectile_loss_is_the_expectile():
    """Of 0 and 1 with equal weight, the 0.7 expectile is 0.7."""
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    loss = values.expectile(0.0 - grid, 0.7) + values.expectile(1.0 - grid, 0.7)
    assert grid[loss.argmin()].item() == pytest.approx(0.7, abs=1e-3)


def test_weights_are_capped_before_they_overflow():
    assert values.exp_weight(row(0.0, 1.0, 1e6), 3.0, 100.0).tolist() == pytest.approx([1.0, math.exp(3.0), 100.0])


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    reward, value = column(1.0, 2.0, 3.0), column(0.5, 0.5, 0.5)
    next_value, never = column(0.5, 0.5, 4.0), torch.zeros(3, 1, dtype=torch.bool)
    advantage, returns = values.gae(reward, value, next_value, never, never, gamma=0.5, decay=1.0)
    by_hand = [1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 4)), 2 + 0.5 * (3 + 0.5 * 4), 3 + 0.5 * 4]
    assert returns[:, 0].tolist() == pytest.approx(by_hand)
    assert advantage[:, 0].tolist() == pytest.approx([r - 0.5 for r in by_hand])


def test_gae_with_lambda_zero_is_the_one_step_error():
    reward, value, next_value = column(1.0, 2.0), column(0.0, 1.0), column(1.0, 2.0)
    never = torch.zeros(2, 1, dtype=torch.bool)
    assert values.gae(reward, value, next_value, never, never, gamma=0.5, decay=0.0)[0][:, 0].tolist() == [1.5, 2.0]


def test_a_cut_bootstraps_and_an_end_does_not_and_neither_looks_beyond():
    reward, value, next_value = column(1.0, 1.0), column(0.0, 100.0), column(10.0, 0.0)
    first, never = torch.tensor([[True], [False]]), torch.zeros(2, 1, dtype=torch.bool)
    ended, _ = values.gae(reward, value, next_value, first, never, gamma=0.9, decay=0.95)
    cut, _ = values.gae(reward, value, next_value, never, first, gamma=0.9, decay=0.95)
    assert ended[0].item() == pytest.approx(1.0)
    assert cut[0].item() == pytest.approx(1.0 + 0.9 * 10.0)


def test_whitening_makes_mean_zero_and_deviation_one_or_nothing():
    whitened = values.whitened(row(1.0, 2.0, 6.0))
    assert (whitened.mean().item(), whitened.std(unbiased=False).item()) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert values.whitened(row(3.0)).tolist() == [0.0]
    assert values.whitened(row(3.0, 3.0)).tolist() == [0.0, 0.0]


def test_returns_to_go_by_hand():
    assert values.returns_to_go(row(1.0, 2.0, 4.0), 0.5).tolist() == [1 + 1 + 1.0, 4.0, 4.0]
    assert values.returns_to_go(row(1.0), 0.5, last=8.0).tolist() == [5.0]


def test_the_conservative_gap_of_every_action_is_the_log_sum_minus_the_data():
    """With one draw of each of K actions from the uniform density, the estimate is exact."""
    q_KB = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    uniform = torch.full_like(q_KB, math.log(1 / 3))
    exact = math.log(sum(math.exp(q) for q in (1.0, 2.0, 3.0))) - 2.0
    assert values.conservative_gap(q_KB, uniform, row(2.0)).item() == pytest.approx(exact)


def test_the_gap_does_not_depend_on_how_actions_were_drawn():
    make = torch.Generator().manual_seed(0)
    action_K = torch.rand(200_000, generator=make, dtype=torch.float64) * 2 - 1
    skewed_K = torch.rand(200_000, generator=make, dtype=torch.float64).sqrt() * 2 - 1
    zero = row(0.0)
    uniform = values.conservative_gap(action_K[:, None], torch.full((200_000, 1), math.log(0.5)), zero)
    other = values.conservative_gap(skewed_K[:, None], ((skewed_K + 1) / 2).log()[:, None], zero)
    assert uniform.item() == pytest.approx(other.item(), abs=0.01)
    assert uniform.item() == pytest.approx(math.log(math.e - 1 / math.e), abs=0.01)


def test_smoothing_noise_is_bounded_twice():
    make = torch.Generator().manual_seed(0)
    smoothed = values.smoothed(torch.full((1000, 1), 0.8), 1.0, 0.5, make)
    assert float(smoothed.max()) == 1.0
    assert float(smoothed.min()) == pytest.approx(0.3)
