"""Balances and their codes, by hand."""

import math

import pytest
import torch

from freerun.ops import balance


def test_a_code_is_three_sines_and_three_cosines():
    code = balance.code(torch.tensor([[2.0]]))[0].tolist()
    phases = [2.0, 2.0 / 10_000 ** (1 / 3), 2.0 / 10_000 ** (2 / 3)]
    assert code == pytest.approx([*map(math.sin, phases), *map(math.cos, phases)])
    assert len(code) == balance.WIDTH


def test_near_balances_have_near_codes_and_a_gradient():
    value = torch.tensor([[1.0], [1.01], [4.0]], requires_grad=True)
    code = balance.code(value)
    assert torch.allclose(torch.autograd.grad(code[:, 0].sum(), value, retain_graph=True)[0], value.cos())
    near, far = (code[0] - code[1]).norm().item(), (code[0] - code[2]).norm().item()
    assert near < 0.02 < far


def test_a_unit_becomes_a_number_within_its_bounds():
    assert balance.within(torch.tensor([-1.0, 0.0, 1.0]), 1.0, 5.0).tolist() == [1.0, 3.0, 5.0]
