"""Element-wise losses of the policy, to be minimised. Nothing here averages: `ops.reduce` and the trainer do.

Shapes: B trajectories, T action tokens. The gradient reaches current log-probs only: advantages, weights and the log-probs of
other policies are detached inside, whatever the caller hands in. All stay finite for finite or infinite log-probs.
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Bound on |log ratio| before `exp`, as in verl: a ratio stays below 5e8 whatever the padding holds."""


def log_ratio(logp_BT: Tensor, logp_other_BT: Tensor) -> Tensor:
    """`log(current / other)` per token, clamped to +-20 (no gradient beyond)."""
    return (logp_BT - logp_other_BT.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def score_loss(logp_BT: Tensor, advantage_BT: Tensor, weight_BT: Tensor | float = 1.0) -> Tensor:
    """`-sg(weight * A) * logp`: the gradient is `-weight * A * score`, however the weight was truncated."""
    return -(weight_BT * advantage_BT).detach() * logp_BT


def ratio_loss(ratio_BT: Tensor, advantage_BT: Tensor) -> Tensor:
    """`-ratio * A`: the gradient flows through the ratio, so a clamp on it kills the gradient of what it clamps."""
    return -ratio_BT * advantage_BT.detach()


def clipped_surrogate(
    log_ratio_BT: Tensor, advantage_BT: Tensor, *, low: float, high: float, dual: float | None = None
) -> tuple[Tensor, Tensor]:
    """PPO's `-min(r A, clip(r, 1 - low, 1 + high) A)` (arXiv 1707.06347, eq. 7), and where it has no gradient (bool).

    With `dual` (> 1), the loss of a negative advantage is at most `-dual * A` (arXiv 1912.09729).
    """
    ratio_BT, negative_BT = log_ratio_BT.exp(), advantage_BT < 0
    loss_BT, clipped_BT = bounded_surrogate(ratio_BT, advantage_BT, 1.0 - low, 1.0 + high)
    if dual is not None:
        loss_BT = torch.where(negative_BT, torch.minimum(loss_BT, -dual * advantage_BT.detach()), loss_BT)
        clipped_BT = clipped_BT | (negative_BT & (ratio_BT > dual))
    return loss_BT, clipped_BT


def bounded_surrogate(
    ratio_BT: Tensor, advantage_BT: Tensor, least: Tensor | float, most: Tensor | float
) -> tuple[Tensor, Tensor]:
    """`-min(r A, clip(r, least, most) A)` with bounds that may differ from token to token, and where it has no gradient."""
    advantage_BT = advantage_BT.detach()
    bounded_BT = ratio_BT.clamp(least, most)  # type: ignore[arg-type]
    loss_BT = torch.maximum(-ratio_BT * advantage_BT, -bounded_BT * advantage_BT)
    return loss_BT, beyond(ratio_BT, advantage_BT, least, most)


def beyond(ratio_BT: Tensor, advantage_BT: Tensor, least: Tensor | float, most: Tensor | float) -> Tensor:
    """True where a ratio has left `least` to `most` in the direction in which its advantage pushes it: the one-sided gate."""
    return ((advantage_BT > 0) & (ratio_BT > most)) | ((advantage_BT < 0) & (ratio_BT < least))


def nll(logp_BT: Tensor) -> Tensor:
    """Negative log-likelihood of the tokens."""
    return -logp_BT
