"""From lists to tensors where they are needed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_on(device: torch.device | str, values: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values)` on `device`. On CUDA it goes through pinned memory, in the order of what the device does and
    without waiting for it: the plain way would wait until everything before has been done."""
    made = torch.tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)
