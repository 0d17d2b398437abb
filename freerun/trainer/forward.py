"""The networks as the trainer sees them: packs in, log-probs or values of their action tokens out, weights to publish.

Weights are float32 masters. With bfloat16 compute, matrix products run under autocast (no second copy of the weights, gradients
arrive in float32); the log-softmax is float32 always.

Shapes: R rows, L positions, D width, U positions that predict, M action tokens, B trajectories, T action tokens of the longest.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from freerun.errors import ConfigError
from freerun.models.base import resolve_dtype
from freerun.ops.logprobs import token_logps
from freerun.trainer.config import TrainerConfig
from freerun.trainer.packing import Pack


class Predictions(NamedTuple):
    """Log-probs of the action tokens, entropies where they were predicted and, with a critic, the values of those states,
    float32 [B, T]; 0 on padding."""

    logp_BT: Tensor
    entropy_BT: Tensor
    values_BT: Tensor | None = None


def outputs_of(predictions: Predictions) -> dict[str, Tensor]:
    """Predictions under the names by which terms read them."""
    values = {} if predictions.values_BT is None else {"values": predictions.values_BT}
    return {"logp": predictions.logp_BT, "entropy": predictions.entropy_BT, **values}


class Trunk:
    """The layers of a causal language model without its head: packs in, hidden states out.

    Raises `ConfigError` at construction if the model cannot take the attention mask of a tree, or cannot recompute activations
    where that is asked for.
    """

    def __init__(self, body: PreTrainedModel, config: TrainerConfig) -> None:
        self.body, self.config = body, config
        self.device = torch.device(config.device)
        self.dtype = resolve_dtype(config.dtype, config.device)
        settings = body.config.to_dict()
        self._window: int | None = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
        # Dropout would make the trainer disagree with the generator.
        body.eval()
        if config.checkpoint_activations:
            self._checkpoint_activations()
        self._check_attention()

    def hidden(self, pack: Pack) -> Tensor:
        """Last hidden states [U, D] at the positions of `pack` that predict an action token."""
        mask = positions = None
        if pack.mask_NN is not None and pack.positions_RL is not None:
            self._check_window(pack.positions_RL)
            # Additive, because every attention implementation that takes a mask takes this one, and it is converted once here
            # and not in every layer.
            mask = torch.zeros(pack.mask_NN.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~pack.mask_NN.to(self.device), torch.finfo(self.dtype).min)[None, None]
            positions = pack.positions_RL.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            hidden_RLD = self.body(
                input_ids=pack.tokens_RL.to(self.device), attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
        return hidden_RLD.flatten(0, 1)[pack.predicts_U.to(self.device)]

    @torch.no_grad()
    def all_hidden(self, tokens_RL: Tensor) -> Tensor:
        """Last hidden states [R, L, D], float32 and without gradient, of right-padded token sequences."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            output = self.body(input_ids=tokens_RL.to(self.device), use_cache=False)
        return output.last_hidden_state.float()

    def per_token(self, value_M: Tensor, pack: Pack) -> Tensor:
        """Values of the pack's action tokens, as it lists them, in the shape of the batch [B, T]."""
        size = pack.shape_BT[0] * pack.shape_BT[1]
        return value_M.new_zeros(size).index_copy(0, pack.slot_M.to(self.device), value_M).view(pack.shape_BT)

    def _checkpoint_activations(self) -> None:
        layers = [module for module in self.body.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ConfigError(
                f"{type(self.body).__name__} has no layers that can recompute their activations",
                given="trainer.checkpoint_activations true",
                expected="a model that transformers can checkpoint",
                todo="--trainer.checkpoint-activations false",
            )
        for layer in layers:
            # Only these modules "train", not what is inside them, where the dropout is.
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def _check_attention(self) -> None:
        implementation = self.body.config._attn_implementation
        if self.config.packing == "tree" and implementation not in ("sdpa", "eager"):
            raise ConfigError(
                "tree packing needs an attention that takes a mask",
                given=f"attention '{implementation}'",
                expected="sdpa or eager",
                todo="--trainer.packing rows, or load the model with attn_implementation='sdpa'",
            )

    def _check_window(self, positions_RL: Tensor) -> None:
        # A given mask replaces the model's own, sliding window included; up to the window's length the two are the same.
        if self._window is not None and int(positions_RL.max()) >= self._window:
            raise ConfigError(
                "tree packing cannot keep a sliding attention window",
                given=f"a trajectory longer than the window of {self._window}",
                expected="trajectories within the window",
                todo="--trainer.packing rows",
            )


class Policy(Trunk):
    """A causal language model with the settings under which log-probs are taken.

    Raises `ConfigError` at construction if the model cannot be used: its logits are not its last hidden states times its output
    embedding (with a soft cap, if `final_logit_softcapping` says so), or its trunk cannot be.
    """

    def __init__(self, model: PreTrainedModel, config: TrainerConfig) -> None:
        super().__init__(model.base_model, config)
        self.model = model
        model.eval()
        self._softcap: float | None = model.config.to_dict().get("final_logit_softcapping")
        self._chunk_rows = max(1, config.logit_megabytes * 2**20 // (4 * model.get_output_embeddings().weight.shape[0]))
        self._check_head()

    def __call__(self, pack: Pack) -> Predictions:
        """Gradients flow unless the caller switched them off."""
        row_M = pack.row_M.to(self.device)
        logp_M, entropy_U = token_logps(
            self.hidden(pack),
            self.model.get_output_embeddings().weight,
            row_M,
            pack.token_M.to(self.device),
            temperature=self.config.temperature,
            softcap=self._softcap,
            chunk_rows=self._chunk_rows,
            dtype=self.dtype,
        )
        return Predictions(self.per_token(logp_M, pack), self.per_token(entropy_U[row_M], pack))

    @torch.no_grad()
    def _check_head(self) -> None:
        tokens_RL = torch.arange(1, 9, device=self.device)[None] % self.model.get_input_embeddings().weight.shape[0]
        logits_LV = self.model(input_ids=tokens_RL, use_cache=False).logits[0].float()
        hidden_LD = self.body(input_ids=tokens_RL, use_cache=False).last_hidden_state[0]
        ours_LV = hidden_LD @ self.model.get_output_embeddings().weight.T
        if self._softcap is not None:
            ours_LV = (ours_LV / self._softcap).tanh() * self._softcap
        if not torch.allclose(ours_LV.float(), logits_LV, rtol=1e-3, atol=1e-3):
            raise ConfigError(
                f"{type(self.model).__name__} makes its logits in a way that the trainer does not know",
                given=f"largest difference {float((ours_LV - logits_LV).abs().max()):.3g}",
                expected="logits = last hidden state @ output embedding, with or without final_logit_softcapping",
                todo="use another model, or teach freerun/ops/logprobs.py what this one does (a bias? a scale?)",
            )


class Critic(nn.Module):
    """Values of the states in which tokens were chosen: a trunk of its own, which starts as a copy of the policy's, and a
    linear head that starts at zero."""

    def __init__(self, body: PreTrainedModel, config: TrainerConfig) -> None:
        super().__init__()
        self.body = copy.deepcopy(body).requires_grad_(True)
        self.head = nn.Linear(body.config.get_text_config().hidden_size, 1, device=config.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._trunk = Trunk(self.body, config)

    def forward(self, pack: Pack) -> Tensor:
        """Values [B, T], float32; 0 on padding. Gradients flow unless the caller switched them off."""
        value_U = self.head(self._trunk.hidden(pack).float()).squeeze(-1)
        return self._trunk.per_token(value_U[pack.row_M.to(self._trunk.device)], pack)


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers under their Hugging Face names; weights that are tied appear once."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor.detach()
    return weights


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `model`. Raises `KeyError` or `RuntimeError` if names or shapes differ."""
    own = named_weights(model)
    if set(own) != set(weights):
        raise KeyError(f"names differ: {sorted(set(own) ^ set(weights))[:6]}")
    for name, tensor in own.items():
        tensor.copy_(weights[name])
