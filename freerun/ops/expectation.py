"""What a critic of actions is worth to a policy.

Shapes: B rows (any leading dimensions), K actions per row.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from freerun.ops.distributions import Categorical, Distribution, repeated


def of_value(
    critic: Callable[[Tensor, Tensor], Tensor], policy: Distribution, obs_B: Tensor, draws: int, generator: Generator
) -> Tensor:
    """`E_{a ~ policy} Q(s, a)`, [B]: the sum over all actions where they are discrete, else the mean over `draws` of them.
    `critic(obs, action)` gives [B]; gradients flow."""
    if isinstance(policy, Categorical):
        num = policy.logp_BA.shape[-1]
        action_KB = torch.arange(num, device=obs_B.device).view(-1, *[1] * (policy.logp_BA.dim() - 1))
        action_KB = action_KB.expand(num, *policy.logp_BA.shape[:-1])
        value_KB = critic(obs_B.expand(num, *obs_B.shape), action_KB)
        return (policy.logp_BA.exp() * value_KB.movedim(0, -1)).sum(-1)
    action_KBA, _ = repeated(policy, draws).sample(generator)
    return critic(obs_B.expand(draws, *obs_B.shape), action_KBA).mean(0)
