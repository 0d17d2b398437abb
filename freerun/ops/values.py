"""Values and credit in control: targets, advantages over time, weights and penalties. Nothing here averages over rows.

Shapes: B rows, M members of an ensemble, T steps of a chunk, N environments, K actions per state.
"""

import torch
from torch import Generator, Tensor


def td_target(reward_B: Tensor, discount_B: Tensor, value_B: Tensor) -> Tensor:
    """`r + discount * V(s')`, detached. `discount` is 0 where the episode terminated, so what the network says there cannot
    matter."""
    return torch.addcmul(reward_B, discount_B, value_B.detach())


def squared_errors(value_MB: Tensor, target_B: Tensor) -> Tensor:
    """Sum over the members of their squared errors, [B]: each member's loss is independent of the others."""
    return (value_MB - target_B.detach()).square().sum(0)


def expectile(error_B: Tensor, share: float) -> Tensor:
    """`|share - 1(u < 0)| u^2`: its minimum is the expectile (IQL, arXiv 2110.06169, eq. 3)."""
    return torch.where(error_B < 0, 1.0 - share, share) * error_B.square()


def exp_weight(advantage_B: Tensor, inverse_temperature: float, cap: float) -> Tensor:
    """`min(exp(b A), cap)`, detached, so that an overflow is capped like any other weight (AWR, arXiv 1910.00177)."""
    return (inverse_temperature * advantage_B.detach()).exp().clamp(max=cap)


def gae(
    reward_TN: Tensor,
    value_TN: Tensor,
    next_value_TN: Tensor,
    terminated_TN: Tensor,
    truncated_TN: Tensor,
    *,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of a chunk by generalised advantage estimation (arXiv 1506.02438).

    `next_value` is the value of what was really seen after the step, at episode ends too. A terminated step has no value
    beyond; a truncated one has, but the sum over later steps ends at both, and at the end of the chunk.
    """
    alive_TN = (~terminated_TN).to(reward_TN.dtype)
    goes_on_TN = (~(terminated_TN | truncated_TN)).to(reward_TN.dtype)
    delta_TN = reward_TN + gamma * alive_TN * next_value_TN - value_TN
    advantage_TN, running_N = torch.empty_like(delta_TN), torch.zeros_like(delta_TN[0])
    keep_TN = gamma * decay * goes_on_TN
    for t in range(len(delta_TN) - 1, -1, -1):
        running_N = torch.addcmul(delta_TN[t], keep_TN[t], running_N)
        advantage_TN[t] = running_N
    return advantage_TN, advantage_TN + value_TN


def whitened(value_B: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1; zeros where all are equal, or there is one."""
    centred_B = value_B - value_B.mean()
    return centred_B / (centred_B.square().mean().sqrt() + 1e-8)


def returns_to_go(reward_T: Tensor, gamma: float, last: float = 0.0) -> Tensor:
    """Discounted sums of rewards from each step to the end, where `last` is what comes after the end."""
    total, out_T = torch.as_tensor(last, dtype=reward_T.dtype), torch.empty_like(reward_T)
    for t in range(len(reward_T) - 1, -1, -1):
        total = reward_T[t] + gamma * total
        out_T[t] = total
    return out_T


def conservative_gap(values_KB: Tensor, log_density_KB: Tensor, data_B: Tensor) -> Tensor:
    """CQL's gap (arXiv 2006.04779, eq. 4): `log mean_k exp(Q(s, a_k) - log q(a_k | s)) - Q(s, a)`, by importance sampling from
    the densities `q` with which the `K` actions were drawn."""
    spread_B = torch.logsumexp(values_KB - log_density_KB.detach(), 0)
    return spread_B - torch.tensor(float(len(values_KB)), device=data_B.device).log() - data_B


def smoothed(action_BA: Tensor, noise: float, bound: float, generator: Generator) -> Tensor:
    """`action` with normal noise that is clipped to `bound`, clipped to [-1, 1] (TD3, arXiv 1802.09477, eq. 14)."""
    noise_BA = torch.randn(action_BA.shape, generator=generator, device=action_BA.device) * noise
    return (action_BA + noise_BA.clamp(-bound, bound)).clamp(-1.0, 1.0)
