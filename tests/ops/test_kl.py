"""KL estimators against the exact divergence of two small distributions."""

import pytest
import torch

from freerun.ops import kl

CURRENT = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
EXACT = float((CURRENT * (CURRENT / REFERENCE).log()).sum())


def expected_gradient(estimator):
    """Expectation under the current policy of the gradient of the estimator as a loss, with respect to logits."""
    logits = CURRENT.log().requires_grad_()
    logp = logits.log_softmax(-1)
    (CURRENT * estimator(logp - REFERENCE.log())).sum().backward()
    return logits.grad


def gradient_of_divergence(divergence):
    logits = CURRENT.log().requires_grad_()
    divergence(logits.softmax(-1)).backward()
    return logits.grad


def test_values_at_a_log_ratio_of_one_half():
    u = torch.tensor([0.5])
    assert kl.k1(u).item() == pytest.approx(0.5)
    assert kl.k2(u).item() == pytest.approx(0.125)
    assert kl.k3(u).item() == pytest.approx(0.60653066 - 1 + 0.5)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_k1_and_k3_are_unbiased(estimator):
    assert float((CURRENT * estimator((CURRENT / REFERENCE).log())).sum()) == pytest.approx(EXACT)


def test_k2_and_k3_are_never_negative_and_zero_at_equality():
    u = torch.linspace(-3, 3, 31, dtype=torch.float64)
    for estimator in (kl.k2, kl.k3):
        assert bool((estimator(u) >= 0).all())
        assert estimator(torch.zeros(1)).item() == 0.0


def test_the_gradient_of_k1_as_a_loss_has_expectation_zero():
    assert torch.allclose(expected_gradient(kl.k1), torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_the_gradient_of_k2_as_a_loss_is_that_of_the_reverse_divergence():
    reverse = gradient_of_divergence(lambda p: (p * (p / REFERENCE).log()).sum())
    assert torch.allclose(expected_gradient(kl.k2), reverse)


def test_the_gradient_of_k3_as_a_loss_is_that_of_the_forward_divergence():
    forward = gradient_of_divergence(lambda p: (REFERENCE * (REFERENCE / p).log()).sum())
    assert torch.allclose(expected_gradient(kl.k3), forward)


def test_weighted_k3_has_value_and_gradient_of_the_reverse_divergence_whoever_sampled():
    sampler = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    logits = CURRENT.log().requires_grad_()
    logp = logits.log_softmax(-1)
    expected = (sampler * kl.weighted_k3(logp - REFERENCE.log(), logp - sampler.log())).sum()
    expected.backward()
    assert expected.item() == pytest.approx(EXACT)
    assert torch.allclose(logits.grad, gradient_of_divergence(lambda p: (p * (p / REFERENCE).log()).sum()))


def test_extreme_log_ratios_are_clamped():
    u = torch.tensor([-1e4, 1e4, -float("inf")])
    assert kl.k1(u).tolist() == [-20.0, 20.0, -20.0]
    assert kl.k2(u).tolist() == [200.0, 200.0, 200.0]
    assert kl.k3(u).tolist() == [10.0, 10.0, 10.0]
