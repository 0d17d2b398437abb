"""Divergences by hand, and conjugate gradients against matrices that are known."""

import math

import pytest
import torch

from freerun.algorithms.control_base import Natural
from freerun.ops.distributions import Categorical, Gaussian, SquashedGaussian
from freerun.ops.natural import conjugate_gradient, divergence
from freerun.trainer.natural import natural_step


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def test_the_divergence_of_normal_policies_by_hand():
    start = Gaussian(row(0.0), row(0.0))
    assert divergence(start, Gaussian(row(1.0), row(0.0))).tolist() == [0.5]
    assert divergence(start, Gaussian(row(0.0), row(1.0))).item() == pytest.approx(1.0 + 0.5 * (math.exp(-2.0) - 1.0))
    assert divergence(start, start).tolist() == [0.0]


def test_squashing_changes_no_divergence_and_dimensions_add_up():
    parts = (row(0.0, 1.0), row(0.2, -0.3)), (row(0.5, 0.5), row(0.0, 0.1))
    plain, squashed = (divergence(kind(*parts[0]), kind(*parts[1])) for kind in (Gaussian, SquashedGaussian))
    assert torch.equal(plain, squashed)
    alone = [
        divergence(Gaussian(a[:, [i]], b[:, [i]]), Gaussian(c[:, [i]], d[:, [i]]))
        for i in range(2)
        for (a, b), (c, d) in [parts]
    ]
    assert plain.item() == pytest.approx(sum(alone).item())


def test_the_divergence_of_discrete_policies_by_hand():
    before, now = Categorical(row(0.5, 0.5).log()), Categorical(row(0.25, 0.75).log())
    assert divergence(before, now).item() == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0))
    with pytest.raises(TypeError, match="Categorical and Gaussian"):
        divergence(before, Gaussian(row(0.0), row(0.0)))


def test_the_divergence_is_what_many_samples_say():
    before, now = Gaussian(row(0.1, -0.4), row(0.0, 0.3)), Gaussian(row(0.3, 0.2), row(-0.2, 0.1))
    wide = Gaussian(*(part.expand(200_000, -1) for part in before))
    action, logp = wide.sample(torch.Generator().manual_seed(0))
    assert (logp - now.log_prob(action)).mean().item() == pytest.approx(divergence(before, now).item(), abs=0.01)


def test_conjugate_gradients_solve_two_equations_in_two_steps():
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    solved = conjugate_gradient(lambda v: matrix @ v, torch.tensor([1.0, 2.0], dtype=torch.float64), 2)
    assert solved.tolist() == pytest.approx([1 / 11, 7 / 11])


def test_conjugate_gradients_are_done_in_one_step_where_all_directions_are_alike():
    looked = []

    def product(vector):
        looked.append(vector)
        return 5.0 * vector

    assert conjugate_gradient(product, torch.ones(7, dtype=torch.float64), 10).tolist() == pytest.approx([0.2] * 7)
    assert len(looked) == 1


def test_the_natural_gradient_of_a_softmax_table_is_the_advantage():
    """Kakade 2002: F^-1 of the gradient of the expected reward is the advantage, up to a constant, whatever the policy."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    slope = torch.autograd.grad((logits.softmax(-1) * reward).sum(), logits)[0]
    p = logits.softmax(-1).detach()
    fisher = torch.diag(p) - p[:, None] * p[None]
    found = conjugate_gradient(lambda v: fisher @ v, slope, 3)
    advantage = reward - (p * reward).sum()
    assert (found - found.mean()).tolist() == pytest.approx((advantage - advantage.mean()).tolist())


def straight(radius=0.01, damping=0.0, halvings=10):
    """A loss that falls with slope (3, 4) per unit, and a divergence that is half the squared distance."""
    point = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    settings = Natural(divergence=lambda networks, batch: None, radius=radius, damping=damping, halvings=halvings)
    moved = natural_step([point], lambda: point @ slope, lambda: 0.5 * point.square().sum(), settings)
    return point.tolist(), moved


def test_a_natural_step_goes_down_to_the_edge_of_the_region():
    """Along (-3, -4) / 5 to where half the squared distance is 0.02: 0.2 far."""
    point, moved = straight(radius=0.02 * (1 + 1e-9))
    assert point == pytest.approx([-0.12, -0.16])
    assert (moved.norm, moved.divergence, moved.share) == pytest.approx((5.0, 0.02, 1.0))


def test_damping_shortens_the_step():
    """The Hessian counts as 2: the longest step is 0.2 / sqrt(2) far."""
    point, moved = straight(radius=0.02, damping=1.0)
    assert moved.divergence == pytest.approx(0.01)
    assert point == pytest.approx([-0.6 * 0.02**0.5, -0.8 * 0.02**0.5])


def test_a_step_that_does_not_help_is_halved_and_at_last_not_made():
    point = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    settings = Natural(divergence=lambda networks, batch: None, radius=0.5, damping=0.0, halvings=4)

    def ditch():
        """Falls to the right, but only for a quarter."""
        return torch.where(point < 0.25, -point, point).sum()

    moved = natural_step([point], ditch, lambda: 0.5 * point.square().sum(), settings)
    assert (point.item(), moved.share) == pytest.approx((0.125, 0.125))
    point.data.zero_()
    again = natural_step([point], ditch, lambda: 0.5 * point.square().sum(), replaced(settings, halvings=2))
    assert (point.item(), again.share) == (0.0, 0.0)


def replaced(settings, **changes):
    return Natural(**{name: changes.get(name, getattr(settings, name)) for name in settings.__slots__})
