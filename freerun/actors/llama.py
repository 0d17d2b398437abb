"""A short forward for Llama-like models over slots: the numbers of the model's own modules, in fewer and larger operations.

Shapes: N tokens of one pass, R rows of logits, V vocabulary, C hidden width, H query heads, K key/value heads, D head width.

Decoding a small model is bound by the number of operations, a larger one by matrix products with few rows. So: layers that read
the same input are one product (`linear`), query and key are rotated together, and rotations come from a table. What flows along
the layers is float32 whatever type the products have, as in a trainer under autocast.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from freerun.actors.linear import Linear
from freerun.actors.slots import Plan

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def applies(model: PreTrainedModel) -> bool:
    """Whether `LlamaForward` computes what `model` computes."""
    kinds = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
    return (
        type(model) in kinds and model.config.hidden_act == "silu" and model.config.rope_parameters["rope_type"] in _STATIC_ROPE
    )


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the form in which they are used."""

    norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
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
        body = self._model.model
        self._embedding, self._norm = body.embed_tokens.weight, body.norm.weight.float()
        self._layers = [self._layer(layer) for layer in body.layers]
        self._head = Linear(self._model.lm_head, dtype=torch.float32)

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        heads, both, width = self._heads, self._heads + self._kv_heads, self._width
        hidden_NC = F.embedding(token_N, self._embedding).float()
        count = hidden_NC.shape[0]
        cos_N1D, sin_N1D = self._rotations(plan)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(self._norm_of(hidden_NC, layer.norm))
            qk = qkv[:, : both * width].view(count, both, width)
            if layer.qk_norm is not None:
                qk = self._norm_of(qk.float(), layer.qk_norm)
            qk = torch.addcmul(qk * cos_N1D, torch.roll(qk, width // 2, -1), sin_N1D)
            value = qkv[:, both * width :].view(count, self._kv_heads, width)
            mixed = plan.attend(index, qk[:, :heads], qk[:, heads:], value, scale=layer.scale, window=layer.window)
            hidden_NC += layer.out(mixed.reshape(count, -1))
            gate, up = layer.gate_up(self._norm_of(hidden_NC, layer.mlp_norm)).chunk(2, -1)
            hidden_NC += layer.down(F.silu(gate).mul_(up))
        if row_R is not None:
            hidden_NC = hidden_NC[row_R]
        return self._head(self._norm_of(hidden_NC, self._norm))

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
            q_norm, k_norm = attention.q_norm.weight.float(), attention.k_norm.weight.float()
            qk_norm = torch.cat([q_norm.expand(self._heads, -1), k_norm.expand(self._kv_heads, -1)])
        return Layer(
            norm=layer.input_layernorm.weight.float(),
            qkv=Linear(attention.q_proj, attention.k_proj, attention.v_proj),
            qk_norm=qk_norm,
            out=Linear(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight.float(),
            gate_up=Linear(mlp.gate_proj, mlp.up_proj),
            down=Linear(mlp.down_proj),
            window=window,
            scale=attention.scaling,
        )

    def _norm_of(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm over the last dimension, of float32, in the type of the products."""
        return F.rms_norm(x, weight.shape[-1:], None, self._eps).mul_(weight).to(self._embedding.dtype)

    def _rotations(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [N, 1, D] of each token's position, such that rotation is `x cos + roll(x) sin`."""
        rotation_N2D = self._rotations_up_to(plan.slots.capacity)[plan.position_N]
        return rotation_N2D[:, :1], rotation_N2D[:, 1:]

    def _rotations_up_to(self, capacity: int) -> Tensor:
        """The table [T, 2, D] that rotations come from, for at least `capacity` positions."""
        if self._rotations_T2D is None or self._rotations_T2D.shape[0] < capacity:
            position_1T = torch.arange(capacity, device=self._embedding.device)[None]
            cos, sin = self._model.model.rotary_emb(self._embedding[:1], position_1T)
            half = self._width // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
            self._rotations_T2D = torch.stack([cos[0], signed], 1)
        return self._rotations_T2D
