"""Token log-probs against the plain definition: `log_softmax` of all logits at once.

Shapes: R positions, D width, V vocabulary, M action tokens.
"""

import pytest
import torch
from torch import Tensor

from freerun.ops.logprobs import token_logps

ROW_M = torch.tensor([0, 0, 1, 2, 2, 2, 4, 5, 6])  # position 3 predicts nothing, position 2 predicts three siblings' tokens
TOKEN_M = torch.tensor([3, 7, 0, 1, 1, 10, 4, 9, 2])


@pytest.fixture
def hidden_RD() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def weight_VD() -> Tensor:
    return torch.randn(11, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)


def plain(
    hidden_RD: Tensor, weight_VD: Tensor, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    z_RV = hidden_RD @ weight_VD.T
    if softcap is not None:
        z_RV = softcap * (z_RV / softcap).tanh()
    logp_RV = (z_RV / temperature).log_softmax(-1)
    return logp_RV[ROW_M, TOKEN_M], -(logp_RV.exp() * logp_RV).sum(-1)


def gradients(outputs: tuple[Tensor, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of an arbitrary function of both outputs."""
    logp_M, entropy_R = outputs
    loss = (logp_M * torch.arange(1.0, 10.0)).sum() + (entropy_R.square() * torch.arange(7.0)).sum()
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.0, 2.0), (1.3, 1.5)])
def test_values_and_gradients_are_those_of_log_softmax(hidden_RD, weight_VD, chunk_rows, temperature, softcap) -> None:
    settings = {"temperature": temperature, "softcap": softcap}
    ours = token_logps(hidden_RD, weight_VD, ROW_M, TOKEN_M, chunk_rows=chunk_rows, **settings)
    expected = plain(hidden_RD, weight_VD, **settings)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients(ours, hidden_RD, weight_VD), gradients(expected, hidden_RD, weight_VD), rtol=1e-4, atol=1e-5
    )


def test_equal_logits_give_minus_log_of_the_vocabulary() -> None:
    logp_M, entropy_R = token_logps(torch.zeros(7, 5), torch.ones(11, 5), ROW_M, TOKEN_M)
    torch.testing.assert_close(logp_M, torch.full((9,), -2.3978953))
    torch.testing.assert_close(entropy_R, torch.full((7,), 2.3978953))


def test_only_the_gradient_of_the_entropy_is_asked_for(hidden_RD, weight_VD) -> None:
    _, entropy_R = token_logps(hidden_RD, weight_VD, ROW_M, TOKEN_M, chunk_rows=2)
    _, expected_R = plain(hidden_RD, weight_VD)
    ours, expected = (torch.autograd.grad(e.sum(), (hidden_RD, weight_VD)) for e in (entropy_R, expected_R))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_output_embedding_gets_no_gradient(hidden_RD, weight_VD) -> None:
    logp_M, _ = token_logps(hidden_RD, weight_VD.detach(), ROW_M, TOKEN_M)
    logp_M.sum().backward()
    assert hidden_RD.grad is not None and weight_VD.grad is None


def test_huge_logits_stay_finite(hidden_RD, weight_VD) -> None:
    outputs = token_logps(hidden_RD * 1e4, weight_VD, ROW_M, TOKEN_M)
    assert all(torch.isfinite(t).all() for t in (*outputs, *gradients(outputs, hidden_RD, weight_VD)))


def test_a_bfloat16_product_gives_float32_results_and_gradients_of_the_inputs_type(hidden_RD, weight_VD) -> None:
    outputs = token_logps(hidden_RD, weight_VD, ROW_M, TOKEN_M, dtype=torch.bfloat16, chunk_rows=3)
    assert [t.dtype for t in (*outputs, *gradients(outputs, hidden_RD, weight_VD))] == [torch.float32] * 4
    torch.testing.assert_close(outputs, plain(hidden_RD, weight_VD), rtol=0.02, atol=0.05)


def test_no_tensor_of_all_logits_is_kept_for_the_backward_pass(hidden_RD, weight_VD) -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        token_logps(hidden_RD, weight_VD, ROW_M, TOKEN_M, chunk_rows=3)
    assert all(t.numel() < 7 * 11 for t in saved)


def test_there_is_no_second_derivative(hidden_RD, weight_VD) -> None:
    logp_M, _ = token_logps(hidden_RD, weight_VD, ROW_M, TOKEN_M)
    (grad_RD,) = torch.autograd.grad(logp_M.square().sum(), hidden_RD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_RD.sum().backward()
