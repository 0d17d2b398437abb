"""Estimators of KL(current || reference) from one sample per token (J. Schulman, "Approximating KL divergence", 2020).

Shapes: B trajectories, T action tokens. The argument is `u = log(current / reference)`, clamped to +-20 (no gradient beyond).
The first three estimate the KL when the current policy sampled. As *losses* they differ: the gradient of `k1` has expectation
0, that of `k2` the gradient of this KL, that of `k3` the gradient of the other one, KL(reference || current).
"""

import torch
from torch import Tensor

from freerun.ops.losses import LOG_RATIO_LIMIT

VALUE_LIMIT = 10.0
"""Bound on |k3|, as in verl."""


def k1(log_ratio_BT: Tensor) -> Tensor:
    """`u`: unbiased, of high variance, may be negative."""
    return log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def k2(log_ratio_BT: Tensor) -> Tensor:
    """`u^2 / 2`: biased, of low variance."""
    return k1(log_ratio_BT).square() / 2


def k3(log_ratio_BT: Tensor) -> Tensor:
    """`exp(-u) - 1 + u`: unbiased, never negative; clamped to 10, beyond which there is no gradient."""
    u_BT = k1(log_ratio_BT)
    return (torch.expm1(-u_BT) + u_BT).clamp(max=VALUE_LIMIT)


def weighted_k3(log_ratio_BT: Tensor, log_weight_BT: Tensor) -> Tensor:
    """`w k3`, `w` = current / sampler, of which `log_weight_BT` is the logarithm: value and gradient are those of
    KL(current || reference) whoever sampled. DeepSeek-V3.2 (arXiv 2512.02556)."""
    return k1(log_weight_BT).exp() * k3(log_ratio_BT)
