"""Any causal LM of `transformers` over slots: its own modules, with our attention in place of theirs.

Shapes: N tokens of one pass (several responses, no padding), R rows of logits asked for, V vocabulary, H query heads, K
key/value heads, D head width.

`transformers` lets a model's attention be replaced by a function under a name. Ours stores keys and values in `Slots` and
attends as the pass's `Plan` says; the plan travels as a keyword argument, and no mask is built because the name has no mask
function.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from freerun.actors.linear import Linear
from freerun.actors.slots import Plan
from freerun.models.routing import Routers

_NAME = "freerun_slots"


class Forward(Protocol):
    """Runs one planned pass through the weights in use."""

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        """Logits [R, V] after the tokens `row_R` of the pass (`None`: after every token)."""
        ...

    def refresh(self) -> None:
        """The model's parameters point at new tensors."""
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: Plan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function in the shape `transformers` calls: query [1, H, N, D], key and value [1, K, N, D]; returns
    [1, N, H, D]. A learned position bias has no place in a slot, so it is refused."""
    if position_bias is not None:
        raise NotImplementedError("attention with a learned position bias")
    out_NHD = plan.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks_H=s_aux,
    )
    return out_NHD[None], None


class HuggingFaceForward:
    """The generic path: the model's own forward, packed into one row without padding. Its attention and the products of its
    linear layers are replaced by ours. With `routers`, which experts each token went to is kept beside its keys and values."""

    def __init__(self, model: PreTrainedModel, routers: Routers | None = None) -> None:
        AttentionInterface.register(_NAME, attention)
        self.model, self._routers = model, routers
        model.set_attn_implementation(_NAME)
        self.refresh()

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        if self._routers is None:
            return self._logits(token_N, plan, row_R)
        with self._routers.recording() as expert_Nk:
            logits_RV = self._logits(token_N, plan, row_R)
        plan.slots.write_routing(torch.stack(expert_Nk), plan)
        return logits_RV

    def _logits(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        output = self.model(
            input_ids=token_N[None],
            position_ids=plan.position_N[None],
            use_cache=False,
            plan=plan,
            logits_to_keep=0 if row_R is None else row_R,
        )
        return output.logits[0]

    def refresh(self) -> None:
        """Take up the parameters that the model points at now."""
        for module in self.model.modules():
            if type(module) is nn.Linear:
                module.forward = Linear(module)
