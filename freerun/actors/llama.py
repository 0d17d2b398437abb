"""A short forward for Llama-like models over slots: the numbers of the model's own modules, in fewer and larger operations.

Shapes: N tokens of one pass, R rows of logits, V vocabulary, C hidden width, H query heads, K key/value heads, D head width.

Decoding a small model is bound by the number of operations, a larger one by matrix products with few rows. So: query, key and
value land in one buffer and are rotated together, residuals are added inside the product, rotations come from a table, small
neighbouring matrices are joined (a copy per version), few rows go through a kernel of their own where it applies (`kernels`),
and otherwise the vocabulary is projected in column blocks that stay in cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from freerun.actors import kernels
from freerun.actors.slots import Plan

_JOIN = 2**18
"""Neighbouring projections of up to this many weights together are joined into one matrix."""
_BLOCK = 3072
"""Columns of the vocabulary projected at a time on a CPU: 10 to 20% faster than all 49152 at once with 8 to 64 rows."""
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def applies(model: PreTrainedModel) -> bool:
    """Whether `LlamaForward` computes what `model` computes."""
    kinds = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
    return (
        type(model) in kinds and model.config.hidden_act == "silu" and model.config.rope_parameters["rope_type"] in _STATIC_ROPE
    )


@dataclass(frozen=True, slots=True)
class Joined:
    """Linear layers that read the same input: weights, each with the columns of the output that it fills, and their biases."""

    parts: tuple[tuple[Tensor, int, int], ...]
    width: int
    bias: Tensor | None
    few_rows: bool

    @classmethod
    def of(cls, *layers: torch.nn.Linear) -> "Joined":
        weights = [layer.weight for layer in layers]
        if len(weights) > 1 and sum(w.numel() for w in weights) <= _JOIN:
            weights = [torch.cat(weights)]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return cls.over(weights, torch.cat(biases) if biases else None)

    @classmethod
    def over(cls, weights: Sequence[Tensor], bias: Tensor | None = None) -> "Joined":
        parts, width = [], 0
        for weight in weights:
            parts.append((weight, width, width + weight.shape[0]))
            width += weight.shape[0]
        return cls(tuple(parts), width, bias, all(map(kernels.usable, weights)))

    def __call__(self, x_NC: Tensor, residual_NC: Tensor | None = None) -> Tensor:
        """`x W^T + bias`, plus `residual_NC` if there is one weight only."""
        few = self.few_rows and 0 < x_NC.shape[0] <= kernels.MOST_ROWS
        if len(self.parts) > 1:
            out = x_NC.new_empty(x_NC.shape[0], self.width)
            for weight, first, last in self.parts:
                if few:
                    kernels.product(x_NC, weight, out_MN=out[:, first:last])
                else:
                    torch.mm(x_NC, weight.t(), out=out[:, first:last])
        elif few:
            out = kernels.product(x_NC, self.parts[0][0], add_MN=residual_NC)
        elif residual_NC is not None:
            out = torch.addmm(residual_NC, x_NC, self.parts[0][0].t())
        else:
            out = torch.mm(x_NC, self.parts[0][0].t())
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the form in which they are used."""

    norm: Tensor
    qkv: Joined
    qk_norm: Tensor | None
    out: Joined
    mlp_norm: Tensor
    gate_up: Joined
    down: Joined
    window: int | None
    scale: float


class LlamaForward:
    """A `Forward` for the models that `applies` accepts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        config = model.config
        self._heads, self._kv_heads, self._eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self._width = model.model.layers[0].self_attn.head_dim
        self._rotations_T2D: Tensor | None = None
        self.refresh()

    @torch.inference_mode()
    def refresh(self) -> None:
        """Take up the parameters that the model points at now."""
        self._layers = [self._layer(layer) for layer in self._model.model.layers]
        self._embedding = self._model.model.embed_tokens.weight
        self._norm = self._model.model.norm.weight
        head = self._model.lm_head.weight
        self._head = Joined.over(head.split(_BLOCK) if head.device.type == "cpu" else [head])

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        heads, both, width = self._heads, self._heads + self._kv_heads, self._width
        hidden_NC = F.embedding(token_N, self._embedding)
        count = hidden_NC.shape[0]
        cos_N1D, sin_N1D = self._rotations(plan)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(self._rms(hidden_NC, layer.norm))
            qk = qkv[:, : both * width].view(count, both, width)
            if layer.qk_norm is not None:
                qk = self._rms(qk, layer.qk_norm)
            qk = torch.addcmul(qk * cos_N1D, torch.roll(qk, width // 2, -1), sin_N1D)
            value = qkv[:, both * width :].view(count, self._kv_heads, width)
            mixed = plan.attend(index, qk[:, :heads], qk[:, heads:], value, scale=layer.scale, window=layer.window)
            hidden_NC = layer.out(mixed.reshape(count, -1), hidden_NC)
            gate_up = layer.gate_up(self._rms(hidden_NC, layer.mlp_norm))
            gate, up = gate_up.chunk(2, -1)
            hidden_NC = layer.down(F.silu(gate).mul_(up), hidden_NC)
        if row_R is not None:
            hidden_NC = hidden_NC[row_R]
        return self._head(self._rms(hidden_NC, self._norm))

    def _layer(self, layer: torch.nn.Module) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        match self._model:
            case Qwen2ForCausalLM() | Qwen3ForCausalLM():
                window = attention.sliding_window
            case MistralForCausalLM():
                window = self._model.config.sliding_window
            case _:
                window = None
        qk_norm = None
        if isinstance(self._model, Qwen3ForCausalLM):
            q_norm, k_norm = attention.q_norm.weight, attention.k_norm.weight
            qk_norm = torch.cat([q_norm.expand(self._heads, -1), k_norm.expand(self._kv_heads, -1)])
        return Layer(
            norm=layer.input_layernorm.weight,
            qkv=Joined.of(attention.q_proj, attention.k_proj, attention.v_proj),
            qk_norm=qk_norm,
            out=Joined.of(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=Joined.of(mlp.gate_proj, mlp.up_proj),
            down=Joined.of(mlp.down_proj),
            window=window,
            scale=attention.scaling,
        )

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm over the last dimension. Written out on a CPU, where the library's takes twice as long."""
        width = x.shape[-1]
        if x.dtype is not torch.float32 or x.device.type != "cpu":
            return F.rms_norm(x, (width,), None, self._eps) * weight
        inverse = torch.linalg.vecdot(x, x).unsqueeze_(-1).div_(width).add_(self._eps).rsqrt_()
        return (x * inverse).mul_(weight)

    def _rotations(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [N, 1, D] of each token's position, such that rotation is `x cos + roll(x) sin`."""
        capacity = plan.slots.capacity
        if self._rotations_T2D is None or self._rotations_T2D.shape[0] < capacity:
            position_1T = torch.arange(capacity, device=self._embedding.device)[None]
            cos, sin = self._model.model.rotary_emb(self._embedding[:1], position_1T)
            half = self._width // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
            self._rotations_T2D = torch.stack([cos[0], signed], 1)
        rotation_N2D = self._rotations_T2D[plan.position_N]
        return rotation_N2D[:, :1], rotation_N2D[:, 1:]
