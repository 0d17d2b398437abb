"""A policy that is paid for its entropy, and the price of that: what soft actor-critics share.

Shapes: B rows.
"""

from torch import Tensor


def actor_loss(logp_B: Tensor, value_B: Tensor, alpha: Tensor | float) -> Tensor:
    """`alpha log pi(a|s) - Q(s, a)` for an action drawn with gradient, [B] (SAC, arXiv 1812.05905, eq. 9). `alpha` is a
    constant here."""
    return (alpha.detach() if isinstance(alpha, Tensor) else alpha) * logp_B - value_B


def temperature_loss(log_alpha: Tensor, logp_B: Tensor, wanted: float) -> Tensor:
    """`-log alpha (log pi(a|s) + wanted)`, [B]: raises `log alpha` while the entropy is below `wanted`."""
    return -log_alpha * (logp_B.detach() + wanted)
