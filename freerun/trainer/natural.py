"""One step along the natural gradient within a trust region (TRPO, arXiv 1502.05477, appendix C).

Shapes: P parameters in one vector.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freerun.algorithms.control_base import Natural
from freerun.ops.natural import conjugate_gradient


class Moved(NamedTuple):
    """What a step did: the gradient's norm, the divergence from the policy before, and the share of the longest step that was
    taken; 0 if none was better than staying."""

    norm: float
    divergence: float
    share: float


def natural_step(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], divergence: Callable[[], Tensor], settings: Natural
) -> Moved:
    """Move `parameters` so that `loss()` falls and `divergence()`, which is 0 now and has no gradient now, stays within the
    radius. Both are evaluated again and again: with the same noise."""
    grads = torch.autograd.grad(loss(), parameters)
    grad_P = _flat(grads)
    norm = float(grad_P.norm())
    if not math.isfinite(norm) or not norm:
        return Moved(norm, 0.0, 0.0)
    slope_P = _flat(torch.autograd.grad(divergence(), parameters, create_graph=True))

    def product(vector_P: Tensor) -> Tensor:
        curved = torch.autograd.grad(slope_P @ vector_P, parameters, retain_graph=True)
        return _flat(curved) + settings.damping * vector_P

    direction_P = conjugate_gradient(product, -grad_P, settings.iterations)
    longest = math.sqrt(2.0 * settings.radius / max(float(direction_P @ product(direction_P)), 1e-12))
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        start = float(loss())
        for halving in range(settings.halvings):
            share = 0.5**halving
            _move(parameters, before, direction_P, longest * share)
            far = float(divergence())
            if float(loss()) < start and far <= settings.radius:
                return Moved(norm, far, share)
        _move(parameters, before, direction_P, 0.0)
    return Moved(norm, 0.0, 0.0)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _move(parameters: Sequence[Tensor], before: Sequence[Tensor], direction_P: Tensor, length: float) -> None:
    steps = direction_P.split([p.numel() for p in parameters])
    for parameter, old, step in zip(parameters, before, steps, strict=True):
        parameter.copy_(old).add_(step.view_as(parameter), alpha=length)
