"""The short forward for Llama-like models on CUDA: the numbers of `LlamaForward`, in a dozen launches per layer, and these as
graphs.

Shapes: N tokens of one pass, R rows of logits, V vocabulary, C hidden width, D head width.

Graphs read weights from where they were when they were captured. So there is a copy for generating, at fixed addresses, into
which every version is copied, and layers that read the same input lie side by side in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from freerun.actors import kernels
from freerun.actors.graphs import Passes
from freerun.actors.linear import Linear
from freerun.actors.llama import LlamaForward
from freerun.actors.slots import Plan


class _Weights(NamedTuple):
    """Of one layer, joined; None where a model has no such thing."""

    norm: Tensor
    mlp_norm: Tensor
    qk_norm: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class _Fixed:
    """One layer, its weights at addresses that stay."""

    weights: _Weights
    window: int | None
    scale: float


class GpuLlamaForward(LlamaForward):
    """A `Forward` for the models that `llama.applies` accepts, on CUDA. Without `graphs` every kernel is launched by itself."""

    def __init__(self, model: PreTrainedModel, *, graphs: bool = True) -> None:
        self._fixed: list[_Fixed] = []
        self._ends: list[Tensor] = []
        self._gpu = kernels.gpu_kernels()
        super().__init__(model)
        self._passes = Passes(self._hidden, self._embedding.device) if graphs else None

    @torch.inference_mode()
    def refresh(self) -> None:
        """Copy the parameters that the model points at now."""
        body, head = self._model.model, self._model.lm_head.weight
        tied = head.data_ptr() == body.embed_tokens.weight.data_ptr()
        ends = [body.norm.weight.float(), body.embed_tokens.weight, *([] if tied else [head])]
        self._ends = _copied(ends, self._ends)
        self._norm, self._embedding, self._head_VC = self._ends[0], self._ends[1], self._ends[-1]
        layers = []
        for index, layer in enumerate(body.layers):
            fresh, window, scale = self._fresh(layer)
            old = self._fixed[index].weights if self._fixed else ()
            made = iter(_copied([x for x in fresh if x is not None], [x for x in old if x is not None]))
            layers.append(_Fixed(_Weights._make(None if x is None else next(made) for x in fresh), window, scale))
        self._fixed = layers

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        final_NC = (self._passes or self._hidden)(token_N, plan)
        final_RC = final_NC[: len(token_N)] if row_R is None else final_NC[row_R]
        return F.linear(final_RC, self._head_VC).float()

    def _fresh(self, layer: nn.Module) -> tuple[_Weights, int | None, float]:
        made = self._layer(layer)
        products = (*_joined(made.qkv), *_joined(made.out), *_joined(made.gate_up), *_joined(made.down))
        return _Weights(made.norm, made.mlp_norm, made.qk_norm, *products), made.window, made.scale

    def _hidden(self, token_N: Tensor, plan: Plan) -> Tensor:
        """What the head reads [N, C]: the last hidden states after the last norm."""
        gpu, slots, where, kind, eps = self._gpu, plan.slots, (plan.slot_N, plan.position_N), self._embedding.dtype, self._eps
        hidden_NC = F.embedding(token_N, self._embedding).float()
        added_NC: Tensor | None = None
        for index, fixed in enumerate(self._fixed):
            w = fixed.weights
            qkv_NO = F.linear(gpu.norm(hidden_NC, added_NC, w.norm, eps, kind), w.qkv, w.qkv_bias)
            like_NKD = qkv_NO.view(len(token_N), -1, self._width)[:, : self._kv_heads]
            slots.allocate(like_NKD, like_NKD)
            assert slots.keys_LSKTD is not None and slots.values_LSKTD is not None
            keys, values = slots.keys_LSKTD[index], slots.values_LSKTD[index]
            query_NHD = gpu.place(qkv_NO, self._rotations_up_to(slots.capacity), w.qk_norm, eps, keys, values, *where)
            mixed_NHD = gpu.mix(query_NHD, keys, values, *where, scale=fixed.scale, window=fixed.window)
            added_NC = F.linear(mixed_NHD.flatten(1), w.out, w.out_bias)
            gate_up_NI = F.linear(gpu.norm(hidden_NC, added_NC, w.mlp_norm, eps, kind), w.gate_up, w.gate_up_bias)
            added_NC = F.linear(gpu.gate(gate_up_NI), w.down, w.down_bias)
        final_NC: Tensor = gpu.norm(hidden_NC, added_NC, self._norm, eps, kind)
        return final_NC


def _joined(linear: Linear) -> tuple[Tensor, Tensor | None]:
    weights, bias_O = linear.parts()
    return (weights[0] if len(weights) == 1 else torch.cat(weights)), bias_O


def _copied(fresh: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """`fresh` in the memory of `old`, where there is any."""
    if not old:
        return [x.clone() for x in fresh]
    torch._foreach_copy_(list(old), list(fresh))
    return list(old)
