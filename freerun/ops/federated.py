"""The server's part of federated training: weights, and what clients' work changed.

Shapes: any; tensors of one name have one shape.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor


def change(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a client's work did to the weights that it was sent: `theta_i - theta`."""
    return {name: after[name] - tensor for name, tensor in before.items()}


def aggregated(
    now: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]], weights: Sequence[float], *, lr: float = 1.0
) -> dict[str, Tensor]:
    """The server's next weights: `theta + lr sum_i d_i (theta_i - theta sent to i)` (arXiv 2206.10189). A name that no client
    changes stays as it is."""
    made = dict(now)
    for one, weight in zip(changes, weights, strict=True):
        for name, tensor in one.items():
            made[name] = made[name].add(tensor, alpha=lr * weight)
    return made
