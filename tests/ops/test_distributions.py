"""Distributions over actions: densities by hand and by integration, samples that have them, modes.

Shapes: B rows, A actions or action dimensions.
"""

import math

import pytest
import torch

from freerun.ops.distributions import Categorical, Gaussian, SquashedGaussian, epsilon_greedy, gaussian_noise, log_slope


def make(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_gaussian_density_by_hand():
    policy = Gaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(2.0), 0.0]]))
    by_hand = -0.5 * (1.0 / 2.0) ** 2 - math.log(2.0) - 0.5 * 3.0**2 - math.log(2 * math.pi)
    assert policy.log_prob(torch.tensor([[2.0, 3.0]])).item() == pytest.approx(by_hand)
    assert policy.entropy().item() == pytest.approx(math.log(2.0) + 2 * (0.5 + 0.5 * math.log(2 * math.pi)))


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 0.3), (-1.0, 0.7)])
def test_the_density_of_a_squashed_gaussian_integrates_to_one(mean, std):
    action_B1 = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[1:-1, None]
    policy = SquashedGaussian(torch.full_like(action_B1, mean), torch.full_like(action_B1, math.log(std)))
    density_B = policy.log_prob(action_B1).exp()
    assert torch.trapezoid(density_B, action_B1[:, 0]).item() == pytest.approx(1.0, abs=1e-3)


def test_the_slope_of_tanh_is_stable_where_tanh_has_no_digits_left():
    u_B1 = torch.tensor([[0.0], [1.0], [30.0], [-30.0]])
    assert log_slope(u_B1)[:2].tolist() == pytest.approx([0.0, math.log(1 - math.tanh(1.0) ** 2)], abs=1e-6)
    assert log_slope(u_B1)[2:].tolist() == pytest.approx([2 * (math.log(2) - 30.0)] * 2)


@pytest.mark.parametrize("kind", [Gaussian, SquashedGaussian])
def test_a_sample_comes_with_the_log_prob_that_it_has(kind):
    policy = kind(torch.randn(500, 3, generator=make(1)), 0.3 * torch.randn(500, 3, generator=make(2)) - 1.0)
    action_BA, logp_B = policy.sample(make())
    assert torch.allclose(policy.log_prob(action_BA), logp_B, atol=1e-3)


def test_actions_at_the_bounds_have_a_finite_log_prob():
    policy = SquashedGaussian(torch.zeros(2, 1), torch.zeros(2, 1))
    assert bool(policy.log_prob(torch.tensor([[1.0], [-1.0]])).isfinite().all())


def test_samples_have_the_gradient_of_the_reparametrisation():
    mean, log_std = torch.tensor([[0.5]], requires_grad=True), torch.tensor([[-1.0]], requires_grad=True)
    action, _ = Gaussian(mean, log_std).sample(make())
    noise = torch.randn(1, 1, generator=make())
    gradient = torch.autograd.grad(action.sum(), [mean, log_std])
    assert [g.item() for g in gradient] == pytest.approx([1.0, (math.exp(-1.0) * noise).item()])


def test_categorical_samples_are_as_frequent_as_they_are_likely():
    logp_A = torch.tensor([0.5, 0.3, 0.2]).log()
    action_B, logp_B = Categorical(logp_A.expand(40_000, 3)).sample(make())
    assert torch.bincount(action_B).div(40_000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert torch.equal(logp_B, logp_A[action_B])


def test_the_mode_is_what_is_most_likely():
    assert Categorical(torch.tensor([[0.2, 0.5, 0.3]]).log()).mode.tolist() == [1]
    assert SquashedGaussian(torch.tensor([[1.0]]), torch.zeros(1, 1)).mode.item() == pytest.approx(math.tanh(1.0))


def test_epsilon_greedy_log_probs_are_those_of_the_mixture():
    best_B = torch.zeros(60_000, dtype=torch.int64)
    action_B, logp_B = epsilon_greedy(best_B, 4, 0.2, make())
    assert logp_B[action_B == 0][0].exp().item() == pytest.approx(0.85)
    assert logp_B[action_B == 3][0].exp().item() == pytest.approx(0.05)
    assert (action_B == 0).float().mean().item() == pytest.approx(0.85, abs=0.01)
    assert epsilon_greedy(best_B, 4, 0.0, make())[1].abs().max() == 0


def test_noise_on_an_action_stays_in_bounds_and_knows_its_density():
    action_BA, logp_B = gaussian_noise(torch.tensor([[0.99, 0.0]]).expand(100, 2), 0.1, make())
    assert float(action_BA.abs().max()) <= 1.0
    assert logp_B.mean().item() == pytest.approx(-1.0 - math.log(2 * math.pi) - 2 * math.log(0.1), abs=0.4)
