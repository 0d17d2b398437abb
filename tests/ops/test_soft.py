"""A policy that is paid for its entropy, by hand."""

import math

import pytest
import torch

from freerun.ops import soft


def test_an_action_is_worth_its_value_minus_what_its_likelihood_costs():
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    logp, value = torch.tensor([-3.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    loss = soft.actor_loss(logp, value, log_alpha.exp())
    assert loss.item() == pytest.approx(0.5 * -3.0 - 2.0)
    assert [torch.autograd.grad(loss, x, allow_unused=True, retain_graph=True)[0] for x in (logp, value)] == [0.5, -1.0]
    assert torch.autograd.grad(loss, log_alpha, allow_unused=True)[0] is None
    assert soft.actor_loss(logp, value, 0.25).item() == pytest.approx(-2.75)


def test_the_temperature_falls_while_the_entropy_is_above_what_is_wanted():
    log_alpha, logp = torch.tensor(0.0, requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    loss = soft.temperature_loss(log_alpha, logp, -1.0).sum()
    loss.backward()
    assert log_alpha.grad.item() == 4.0
    assert logp.grad is None
