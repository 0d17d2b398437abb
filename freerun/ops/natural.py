"""Steps along the natural gradient: how far apart two policies are, and how to solve with a matrix that is only a product.

Shapes: B rows, A width of a continuous action, or number of discrete ones, P parameters in one vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from freerun.ops.distributions import Categorical, Distribution, Gaussian, SquashedGaussian


def divergence(before: Distribution, now: Distribution) -> Tensor:
    """KL(before || now), [B], in nats; no gradient reaches `before`. Squashing changes nothing: it is one-to-one. Raises
    `TypeError` for two of different kinds."""
    match before, now:
        case Categorical(before_BA), Categorical(now_BA):
            before_BA = before_BA.detach()
            return (before_BA.exp() * (before_BA - now_BA)).sum(-1)
        case (Gaussian(mean_BA, log_std_BA), Gaussian(to_BA, to_log_std_BA)) | (
            SquashedGaussian(mean_BA, log_std_BA),
            SquashedGaussian(to_BA, to_log_std_BA),
        ):
            mean_BA, log_std_BA = mean_BA.detach(), log_std_BA.detach()
            spread_BA = (2.0 * (log_std_BA - to_log_std_BA)).exp()
            apart_BA = ((mean_BA - to_BA) * (-to_log_std_BA).exp()).square()
            return (to_log_std_BA - log_std_BA + 0.5 * (spread_BA + apart_BA - 1.0)).sum(-1)
    raise TypeError(f"no divergence between {type(before).__name__} and {type(now).__name__}")


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], wanted_P: Tensor, iterations: int, *, tolerance: float = 1e-10
) -> Tensor:
    """`x` with `product(x)` about `wanted`, for a symmetric positive definite `product` (Hestenes and Stiefel 1952). Exact
    after as many iterations as the matrix has different eigenvalues; ends early where the squared residual is below
    `tolerance`."""
    x_P, residual_P = torch.zeros_like(wanted_P), wanted_P.clone()
    direction_P, square = residual_P.clone(), residual_P @ residual_P
    for _ in range(iterations):
        if float(square) < tolerance:
            break
        image_P = product(direction_P)
        length = square / (direction_P @ image_P)
        x_P = x_P + length * direction_P
        residual_P = residual_P - length * image_P
        before, square = square, residual_P @ residual_P
        direction_P = residual_P + (square / before) * direction_P
    return x_P
