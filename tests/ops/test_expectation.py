"""Expected values of a critic under a policy, by hand."""

import pytest
import torch

from freerun.ops.distributions import Categorical, Gaussian
from freerun.ops.expectation import of_value


def test_discrete_actions_are_summed_over():
    policy = Categorical(torch.tensor([[0.25, 0.75], [1.0, 0.0]]).log())
    obs = torch.tensor([[1.0], [2.0]])
    found = of_value(lambda obs, action: obs[..., 0] * (action + 1), policy, obs, 7, torch.Generator())
    assert found.tolist() == [0.25 * 1 + 0.75 * 2, 2.0]


def test_of_chunks_too():
    policy = Categorical(torch.full((3, 2, 4), 0.25).log())
    found = of_value(lambda obs, action: action.float(), policy, torch.zeros(3, 2, 5), 1, torch.Generator())
    assert found.shape == (3, 2) and found.unique().tolist() == [1.5]


def test_continuous_actions_are_drawn():
    policy = Gaussian(torch.full((1, 1), 3.0), torch.zeros(1, 1))
    found = of_value(lambda obs, action: action[..., 0], policy, torch.zeros(1, 2), 40_000, torch.Generator().manual_seed(0))
    assert found.item() == pytest.approx(3.0, abs=0.02)
