"""What methods of the PPO family share: credit of a chunk, and the clipped surrogate with its entropy.

Shapes: B rows of a minibatch, T steps of a chunk, N environments.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from freerun.ops import losses, values
from freerun.ops.distributions import Distribution


class Credit(NamedTuple):
    """Advantages, targets of the value, and the values themselves, [T, N]."""

    advantage_TN: Tensor
    returns_TN: Tensor
    value_TN: Tensor


def credited(value: Callable[[Tensor], Tensor], chunk: Mapping[str, Tensor], *, gamma: float, decay: float) -> Credit:
    """GAE over a chunk, whose columns `obs`, `next_obs`, `reward`, `terminated` and `truncated` are read. `value(obs)` gives
    [1, T, N]."""
    value_TN, next_value_TN = (value(chunk[name])[0] for name in ("obs", "next_obs"))
    flags = chunk["terminated"], chunk["truncated"]
    advantage_TN, returns_TN = values.gae(chunk["reward"], value_TN, next_value_TN, *flags, gamma=gamma, decay=decay)
    return Credit(advantage_TN, returns_TN, value_TN)


def clipped(
    policy: Distribution, action_B: Tensor, logp_old_B: Tensor, advantage_B: Tensor, *, clip: float, entropy: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-min(u A, clip(u) A) - entropy H`, [B], `u` against `logp_old`, and what there is to watch."""
    log_ratio_B = losses.log_ratio(policy.log_prob(action_B), logp_old_B)
    loss_B, clipped_B = losses.clipped_surrogate(log_ratio_B, advantage_B, low=clip, high=clip)
    entropy_B = policy.entropy()
    watch = {"entropy": entropy_B, "ratio/clipped": clipped_B, "kl/behaviour": log_ratio_B.exp() - 1.0 - log_ratio_B}
    return loss_B - entropy * entropy_B, watch
