"""A balance between improving on the data and staying with it, as a policy reads it.

Shapes: B rows (any leading dimensions), E width of the code.
"""

import torch
from torch import Tensor

WIDTH = 6
"""Width of a code."""
LONGEST = 10_000.0
"""The slowest wave is about so many times slower than the fastest."""


def code(balance_B1: Tensor) -> Tensor:
    """Sines and cosines of a number in three wavelengths, [B, E] (FamO2O, arXiv 2310.17966):
    `sin(balance / 10000^(i / 3))` and the same of cosines, for i = 0, 1, 2. Differentiable."""
    waves = torch.tensor([LONGEST ** (2.0 * i / WIDTH) for i in range(WIDTH // 2)], device=balance_B1.device)
    phase_BE = balance_B1 / waves
    return torch.cat([phase_BE.sin(), phase_BE.cos()], -1)


def within(unit_B1: Tensor, low: float, high: float) -> Tensor:
    """From [-1, 1] to [low, high]."""
    return low + (unit_B1 + 1.0) * (0.5 * (high - low))
