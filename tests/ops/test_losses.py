"""Element-wise losses against hand-worked values and gradients."""

import math

import pytest
import torch

from freerun.ops import losses

INF = float("inf")


def gradient(loss_of_x, x):
    x = torch.as_tensor(x, dtype=torch.float64).clone().requires_grad_()
    loss_of_x(x).sum().backward()
    return x.grad


def log(*ratios):
    return torch.tensor(ratios, dtype=torch.float64).log()


def test_log_ratio_is_the_difference_of_log_probs():
    assert torch.allclose(losses.log_ratio(log(0.6), log(0.2)), log(3.0))


def test_log_ratio_stays_finite_where_a_probability_is_zero():
    ratio = losses.log_ratio(torch.tensor([-INF, 0.0]), torch.tensor([0.0, -INF]))
    assert ratio.tolist() == [-20.0, 20.0]


def test_log_ratio_has_no_gradient_beyond_its_bound_or_to_the_other_policy():
    other = torch.zeros(3, requires_grad=True)
    current = torch.tensor([-30.0, 0.5, 30.0], requires_grad=True)
    losses.log_ratio(current, other).sum().backward()
    assert current.grad.tolist() == [0.0, 1.0, 0.0]
    assert other.grad is None


def test_score_loss_has_the_gradient_of_weight_times_advantage_times_score():
    advantage, weight = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 4.0, 0.0])
    assert gradient(lambda logp: losses.score_loss(logp, advantage, weight), [-0.1, -1.0, -2.0]).tolist() == [-2.0, 4.0, 0.0]


def test_score_form_and_ratio_form_have_the_same_gradient():
    logp, behaviour, advantage = log(0.5, 0.1, 0.3), log(0.4, 0.3, 0.3), torch.tensor([1.0, -2.0, 0.5])

    def ratio(x):
        return losses.log_ratio(x, behaviour).exp()

    score = gradient(lambda x: losses.score_loss(x, advantage, ratio(x)), logp)
    assert torch.allclose(gradient(lambda x: losses.ratio_loss(ratio(x), advantage), logp), score)
    assert torch.allclose(score, -torch.tensor([0.5 / 0.4, -2 * 0.1 / 0.3, 0.5], dtype=torch.float64))


def test_a_cap_keeps_the_gradient_of_the_score_form_and_kills_that_of_the_ratio_form():
    behaviour, advantage = log(0.1), torch.tensor([1.0])

    def capped(x):
        return losses.log_ratio(x, behaviour).clamp(max=math.log(2.0)).exp()

    assert gradient(lambda x: losses.score_loss(x, advantage, capped(x)), log(0.9)).item() == pytest.approx(-2.0)
    assert gradient(lambda x: losses.ratio_loss(capped(x), advantage), log(0.9)).item() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 1.0, -1.28, 0.0),  # already raised enough
        (0.5, 1.0, -0.5, -0.5),  # a good token that became less likely: always pulled back
        (0.5, -1.0, 0.8, 0.0),  # already lowered enough
        (1.5, -1.0, 1.5, 1.5),  # a bad token that became likelier: always pushed down
        (5.0, -1.0, 5.0, 5.0),
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_is_ppos(ratio, advantage, loss, slope):
    bounds = {"low": 0.2, "high": 0.28}
    advantage = torch.tensor([advantage], dtype=torch.float64)
    value, clipped = losses.clipped_surrogate(log(ratio), advantage, **bounds)
    assert value.item() == pytest.approx(loss)
    # The derivative with respect to log-prob is that with respect to the ratio, times the ratio.
    assert gradient(lambda u: losses.clipped_surrogate(u, advantage, **bounds)[0], log(ratio)).item() == pytest.approx(slope)
    assert clipped.item() == (slope == 0 and advantage.item() != 0)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    advantage = torch.tensor([-2.0, -2.0, 2.0], dtype=torch.float64)

    def dual(u):
        return losses.clipped_surrogate(u, advantage, low=0.2, high=0.2, dual=3.0)

    value, clipped = dual(log(5.0, 2.0, 0.1))
    assert value.tolist() == pytest.approx([6.0, 4.0, -0.2])
    assert clipped.tolist() == [True, False, False]
    assert gradient(lambda u: dual(u)[0], log(5.0, 2.0, 0.1)).tolist() == pytest.approx([0.0, 4.0, -0.2])


def test_no_gradient_reaches_advantages_or_weights():
    logp = torch.tensor([-1.0], requires_grad=True)
    constants = [torch.tensor([0.5], requires_grad=True) for _ in range(4)]
    loss = losses.score_loss(logp, constants[0], constants[1]) + losses.ratio_loss(logp.exp(), constants[2])
    (loss + losses.clipped_surrogate(logp, constants[3], low=0.2, high=0.2)[0]).backward()
    assert all(constant.grad is None for constant in constants)


def test_nll_is_minus_the_log_prob():
    assert losses.nll(log(0.25)).item() == pytest.approx(math.log(4))
