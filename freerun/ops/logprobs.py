"""Token log-probs and entropies from hidden states, without ever holding the logits of a batch.

Only the positions that predict an action token are projected. Positions go through the output embedding in chunks; one chunk of
logits exists at a time, in float32, and the backward pass computes it again. A batch that fits into one chunk keeps it instead:
that costs no more memory than the chunk itself and saves a matrix product.

Shapes: R positions, D width, V vocabulary, M action tokens; several action tokens may share a position (siblings whose texts
agree so far).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logps(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    row_M: Tensor,
    token_M: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int = 1024,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`log softmax(z / temperature)` of `token_M` at position `row_M`, float32 [M], and the entropies, float32 [R].

    `z = hidden @ weight.T`, and `softcap * tanh(z / softcap)` of it where a model caps its logits. The product runs in `dtype`
    (default: that of `hidden_RD`), everything after it in float32. `row_M` must ascend. Gradients flow to both inputs and
    through both results; there is no second derivative.
    """
    settings = (temperature, softcap, chunk_rows, dtype or hidden_RD.dtype)
    logp_M, entropy_R = _TokenLogps.apply(hidden_RD, weight_VD, row_M, token_M, *settings)  # type: ignore[no-untyped-call]
    return logp_M, entropy_R


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        row_M: Tensor,
        token_M: Tensor,
        temperature: float,
        softcap: float | None,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        hidden, weight = hidden_RD.to(dtype), weight_VD.to(dtype)
        num_rows = hidden.shape[0]
        chunks = _chunks(row_M, num_rows, chunk_rows)
        logp_M = torch.empty(token_M.shape, dtype=torch.float32, device=hidden.device)
        entropy_R = torch.empty(num_rows, dtype=torch.float32, device=hidden.device)
        lse_R = torch.empty_like(entropy_R)
        for rows, pairs in chunks:
            z_CV = _logits(hidden[rows], weight, temperature, softcap)
            top_C1 = z_CV.amax(-1, keepdim=True)
            p_CV = (z_CV - top_C1).exp_()
            total_C = p_CV.sum(-1)
            lse_R[rows] = top_C1.squeeze(-1) + total_C.log()
            entropy_R[rows] = lse_R[rows] - torch.linalg.vecdot(p_CV, z_CV) / total_C
            logp_M[pairs] = z_CV[row_M[pairs] - rows.start, token_M[pairs]] - lse_R[row_M[pairs]]
        kept = z_CV if len(chunks) == 1 else None
        ctx.save_for_backward(hidden_RD, weight_VD, row_M, token_M, lse_R, entropy_R, kept)
        ctx.chunks, ctx.settings, ctx.dtype = chunks, (temperature, softcap), dtype
        ctx.set_materialize_grads(False)
        return logp_M, entropy_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor | None, grad_entropy_R: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, row_M, token_M, lse_R, entropy_R, kept = ctx.saved_tensors
        temperature, softcap = ctx.settings
        hidden, weight = hidden_RD.to(ctx.dtype), weight_VD.to(ctx.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_weight = None
        for rows, pairs in ctx.chunks:
            z_CV = _logits(hidden[rows], weight, temperature, softcap) if kept is None else kept
            grad_CV = _grad_logits(
                z_CV,
                lse_R[rows, None],
                entropy_R[rows, None],
                row_M[pairs] - rows.start,
                token_M[pairs],
                None if grad_M is None else grad_M[pairs],
                None if grad_entropy_R is None else grad_entropy_R[rows, None],
            )
            if softcap is not None:
                grad_CV *= 1.0 - (z_CV * (temperature / softcap)).square_()
            grad_CV = grad_CV.div_(temperature).to(ctx.dtype) if temperature != 1.0 else grad_CV.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_CV @ weight).to(hidden_RD.dtype)
            if wants_weight:
                share_VD = (grad_CV.T @ hidden[rows]).to(weight_VD.dtype)
                grad_weight = share_VD if grad_weight is None else grad_weight.add_(share_VD)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float, softcap: float | None) -> Tensor:
    z_CV = (hidden_CD @ weight_VD.T).float()
    if softcap is not None:
        z_CV = z_CV.div_(softcap).tanh_().mul_(softcap)
    return z_CV.div_(temperature) if temperature != 1.0 else z_CV


def _grad_logits(
    z_CV: Tensor,
    lse_C1: Tensor,
    entropy_C1: Tensor,
    row_M: Tensor,
    token_M: Tensor,
    grad_M: Tensor | None,
    grad_entropy_C1: Tensor | None,
) -> Tensor:
    """With `p = softmax(z)`: a log-prob has derivative `onehot - p`, the entropy `H` has `-p (log p + H)`."""
    log_p_CV = z_CV - lse_C1
    grad_C1 = torch.zeros_like(lse_C1)
    if grad_M is not None:
        grad_C1.squeeze(-1).index_add_(0, row_M, -grad_M.float())
    if grad_entropy_C1 is None:
        result_CV = log_p_CV.exp_().mul_(grad_C1)
    else:
        result_CV = (grad_C1 - grad_entropy_C1 * (log_p_CV + entropy_C1)).mul_(log_p_CV.exp_())
    if grad_M is not None:
        result_CV.index_put_((row_M, token_M), grad_M.float(), accumulate=True)
    return result_CV


def _chunks(row_M: Tensor, num_rows: int, chunk_rows: int) -> list[tuple[slice, slice]]:
    """Ranges of positions with the range of action tokens that each predicts."""
    starts = list(range(0, num_rows, chunk_rows))
    if len(starts) == 1:
        return [(slice(0, num_rows), slice(0, row_M.shape[0]))]
    ends = [*starts[1:], num_rows]
    bounds = torch.searchsorted(row_M, torch.tensor([*starts, num_rows], device=row_M.device)).tolist()
    return [
        (slice(start, end), slice(first, last))
        for start, end, first, last in zip(starts, ends, bounds[:-1], bounds[1:], strict=True)
    ]
