"""From rewards to credit per token where a group alone does not decide: returns, advantages against a critic, whitening.

Shapes: B trajectories of a whole step, T action tokens. All are columns of a batch, without gradient: 0 where the mask is
False, whatever the inputs hold there.
"""

import torch
from torch import Tensor


def at_the_end(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """The reward of each trajectory on its last token, 0 elsewhere."""
    last_BT = mask_BT & (mask_BT.cumsum(-1) == mask_BT.sum(-1, keepdim=True))
    return torch.where(last_BT, reward_B[:, None], 0.0)


def gae(reward_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, discount: float, decay: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and the returns that values are fitted to (arXiv 1506.02438):
    `d_t = r_t + discount V_{t+1} - V_t`, `A_t = d_t + discount decay A_{t+1}`, return `A_t + V_t`. The value after the last
    token is 0: a trajectory has ended."""
    advantage_BT = torch.zeros_like(values_BT)
    following_B = carried_B = torch.zeros_like(values_BT[:, 0])
    for t in range(mask_BT.shape[1] - 1, -1, -1):
        here_B = mask_BT[:, t]
        step_B = reward_BT[:, t] + discount * following_B - values_BT[:, t]
        carried_B = torch.where(here_B, step_B + discount * decay * carried_B, carried_B)
        following_B = torch.where(here_B, values_BT[:, t], following_B)
        advantage_BT[:, t] = torch.where(here_B, carried_B, 0.0)
    return advantage_BT, torch.where(mask_BT, advantage_BT + values_BT, 0.0)


def to_go(reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Each token's own reward and all later ones of its trajectory."""
    reward_BT = torch.where(mask_BT, reward_BT, 0.0)
    return torch.where(mask_BT, reward_BT.flip(-1).cumsum(-1).flip(-1), 0.0)


def whitened(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and variance 1 (n - 1) over the tokens of the step, as in verl; exactly 0 if all are equal."""
    value_N = value_BT[mask_BT].double()
    if value_N.numel() < 2 or bool(value_N.max() == value_N.min()):
        return torch.zeros_like(value_BT)
    scale = (value_N.var() + 1e-8).rsqrt()
    return torch.where(mask_BT, (value_BT.double() - value_N.mean()) * scale, 0.0).to(value_BT.dtype)
