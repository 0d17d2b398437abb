"""Values pushed down where there is no data: the estimate by hand, against an integral, and what Cal-QL leaves alone.

Shapes: B rows, M critics, K actions.
"""

import math

import pytest
import torch

from freerun.ops import conservatism
from freerun.ops.conservatism import Proposals
from freerun.ops.distributions import SquashedGaussian


def policy(obs_B):
    """A narrow policy around tanh of the observation."""
    return SquashedGaussian(obs_B, torch.full_like(obs_B, -1.0))


def test_proposals_come_from_three_distributions_with_their_densities():
    here, there = torch.full((2, 1), -1.0), torch.full((2, 1), 1.0)
    drawn = conservatism.proposals(policy, here, there, 500, torch.Generator().manual_seed(0))
    assert drawn.action_KBA.shape == (1500, 2, 1)
    uniform, low, high = drawn.action_KBA.split(500)
    assert uniform.mean().item() == pytest.approx(0.0, abs=0.05)
    assert low.mean().item() == pytest.approx(-0.75, abs=0.05)
    assert high.mean().item() == pytest.approx(0.75, abs=0.05)
    assert drawn.log_density_KB[:500].unique().tolist() == pytest.approx([math.log(0.5)])
    assert torch.allclose(drawn.log_density_KB[500:1000], policy(here).log_prob(low), atol=1e-3)
    assert torch.allclose(drawn.log_density_KB[1000:], policy(there).log_prob(high), atol=1e-3)


def test_the_gap_is_the_log_of_an_integral_over_all_actions_minus_the_data():
    """Of Q(a) = 2 a: log of the integral of exp(2 a) from -1 to 1, which is sinh(2)."""
    state = torch.zeros(1, 1)
    drawn = conservatism.proposals(policy, state, state + 0.5, 50_000, torch.Generator().manual_seed(0))
    value_MKB = 2.0 * drawn.action_KBA[None, :, :, 0]
    gap = conservatism.gap(value_MKB, drawn, torch.tensor([[0.25]]))
    assert gap.item() == pytest.approx(math.log(math.sinh(2.0)) - 0.25, abs=0.02)


def test_each_critic_has_a_gap_of_its_own():
    drawn = Proposals(torch.zeros(2, 1, 1), torch.zeros(2, 1), 1)
    value_MKB = torch.tensor([[[1.0], [1.0]], [[5.0], [5.0]]])
    assert conservatism.gap(value_MKB, drawn, torch.tensor([[0.0], [2.0]])).flatten().tolist() == [1.0, 3.0]


def test_the_gradient_pushes_the_data_up_by_one_and_all_else_down_by_one():
    drawn = Proposals(torch.zeros(3, 1, 1), torch.tensor([[0.0], [1.0], [-1.0]]), 1)
    value_MKB = torch.tensor([[[0.0], [1.0], [2.0]]], requires_grad=True)
    data_MB = torch.zeros(1, 1, requires_grad=True)
    conservatism.gap(value_MKB, drawn, data_MB).sum().backward()
    shares = [math.exp(q - d) for q, d in ((0, 0), (1, 1), (2, -1))]
    assert value_MKB.grad.flatten().tolist() == pytest.approx([s / sum(shares) for s in shares])
    assert data_MB.grad.item() == -1.0


def test_calibration_lifts_what_policies_propose_and_leaves_uniform_actions_alone():
    value_MKB = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [9.0, 9.0]]], requires_grad=True)
    floored = conservatism.calibrated(value_MKB, torch.tensor([4.0, math.nan]), 1)
    assert floored.tolist() == [[[1.0, 1.0], [4.0, 1.0], [9.0, 9.0]]]
    floored.sum().backward()
    assert value_MKB.grad.tolist() == [[[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]]


def test_a_learned_weight_grows_while_the_gap_is_too_large_and_pushes_critics_by_itself():
    gap_MB, log_weight = torch.tensor([[3.0], [1.0]], requires_grad=True), torch.tensor(math.log(2.0), requires_grad=True)
    loss_B = conservatism.held_to(gap_MB, 0.5, log_weight)
    loss_B.sum().backward()
    assert gap_MB.grad.flatten().tolist() == [2.0, 2.0]
    assert log_weight.grad.item() == pytest.approx(-2.0 * (2.5 + 0.5))


def test_where_the_task_ended_the_next_observation_is_not_looked_at():
    here, there = torch.zeros(2, 3), torch.ones(2, 3)
    assert conservatism.next_seen(here, there, torch.tensor([0.9, 0.0])).tolist() == [[1.0] * 3, [0.0] * 3]
