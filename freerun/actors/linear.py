"""Linear layers as a generator uses them: few rows through the kernel of our own, where there is one, many through the library.

Shapes: N rows, C inputs, O outputs.
"""

import itertools

import torch
from torch import Tensor, nn

from freerun.actors import kernels

_MOST_ROWS = 192
"""More rows are faster through the library, which then has time to rearrange the weights first."""
_JOIN = 2**18
"""For the library, weights that read the same input are joined if together they are no more than this: a copy per version."""


class Linear:
    """`x W^T + b` of layers that read the same input, their outputs side by side; weights as the layers have them now."""

    def __init__(self, *layers: nn.Linear, dtype: torch.dtype | None = None) -> None:
        """`dtype` is that of the result, if not that of the weights; our kernel then does not round to the latter first."""
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self._few = _MOST_ROWS if all(map(kernels.usable, weights)) else 0
        small = len(weights) > 1 and sum(weight.numel() for weight in weights) <= _JOIN
        weights = [torch.cat(weights)] if small and not self._few else weights
        ends = list(itertools.accumulate(weight.shape[0] for weight in weights))
        self._parts = list(zip(weights, [0, *ends], ends, strict=False))
        self._width, self._dtype = ends[-1], dtype or weights[0].dtype
        self._bias_O = torch.cat(biases) if biases else None

    def parts(self) -> tuple[list[Tensor], Tensor | None]:
        """Weights [O, C] in order, and all biases [O]."""
        return [weight for weight, _, _ in self._parts], self._bias_O

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] to [..., O]."""
        rows = x.numel() // x.shape[-1]
        few = 0 < rows <= self._few
        x_NC = x.reshape(rows, x.shape[-1]).contiguous()
        out_NO = x.new_empty(rows, self._width, dtype=self._dtype if few else None)
        for weight, first, last in self._parts:
            out = out_NO if len(self._parts) == 1 else out_NO[:, first:last]
            kernels.product(x_NC, weight, out) if few else torch.mm(x_NC, weight.t(), out=out)
        if self._bias_O is not None:
            out_NO += self._bias_O
        return out_NO.to(self._dtype).view(*x.shape[:-1], self._width)
