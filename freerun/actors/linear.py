"""Linear layers as a generator uses them: few rows through the kernel of our own, where there is one, many through the library.

Shapes: N rows, C inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freerun.actors import kernels

_MOST_ROWS = 192
"""More rows are faster through the library, which then has time to rearrange the weights first."""
_JOIN = 2**18
"""For the library, weights that read the same input are joined if together they are no more than this: a copy per version."""


class Linear:
    """`x W^T + b` of layers that read the same input, their outputs side by side; weights as the layers have them now."""

    def __init__(self, *layers: nn.Linear) -> None:
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self._few = _MOST_ROWS if all(map(kernels.usable, weights)) else 0
        small = len(weights) > 1 and sum(weight.numel() for weight in weights) <= _JOIN
        self._weights = [torch.cat(weights)] if small and not self._few else weights
        self._width = sum(len(weight) for weight in weights)
        self._bias_O = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] to [..., O]."""
        rows = x.numel() // x.shape[-1]
        if 0 < rows <= self._few:
            x_NC, out_NO, first = x.reshape(rows, -1), x.new_empty(rows, self._width), 0
            for weight in self._weights:
                kernels.product(x_NC, weight, out_NO[:, first : first + len(weight)])
                first += len(weight)
            out = out_NO.view(*x.shape[:-1], self._width)
        else:
            parts = [F.linear(x, weight) for weight in self._weights]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return out if self._bias_O is None else out.add_(self._bias_O)
