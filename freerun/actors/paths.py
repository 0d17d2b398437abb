"""Which forward runs a model, and the proof, made once at the start, that it computes what the model itself computes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from freerun.actors.forward import Forward, HuggingFaceForward
from freerun.actors.llama import LlamaForward, applies
from freerun.actors.slots import Slots, Stretch, make_plan
from freerun.errors import ConfigError
from freerun.models.routing import Routers

_PROBE = 24
"""Tokens of the comparison."""


def verified(model: PreTrainedModel, *, fast: bool = True, routing: bool = False) -> Forward:
    """The forward for `model`, which is put into evaluation mode: the short one if asked for and applicable, else the model's
    own modules over slots. Either was compared with the model's plain forward on a few tokens. With `routing`, which experts
    each token went to is recorded.

    Raises `ConfigError` if the model keeps state other than keys and values that pass through its attention function (a
    state-space model, ALiBi, positions of its own), or if its routing is to be recorded and cannot be (`models.routing`).
    """
    model.eval().requires_grad_(False)
    routers = Routers(model) if routing else None
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.get_input_embeddings().num_embeddings, (_PROBE,), generator=generator).tolist()
    with torch.inference_mode():
        reference_NV = model(torch.tensor([tokens], device=device), use_cache=False).logits[0]
        try:
            forward = LlamaForward(model) if fast and applies(model) else HuggingFaceForward(model, routers)
            error = difference(forward, layers(model), reference_NV, tokens)
        except Exception as reason:
            raise _unsupported(model, f"{type(reason).__name__}: {reason}") from reason
    if not error <= (1e-3 if reference_NV.dtype == torch.float32 else 0.5):
        raise _unsupported(model, f"log-probs differ from the model's own forward by {error:.3g}")
    return forward


def layers(model: PreTrainedModel) -> int:
    """Number of layers of the text part of `model`."""
    return model.config.get_text_config().num_hidden_layers


def difference(forward: Forward, num_layers: int, reference_NV: Tensor, tokens: Sequence[int]) -> float:
    """Largest difference in log-prob between `reference_NV` and what `forward` gives for `tokens`, of which the first half is
    prefilled beside another response, most of the rest decoded beside it, and the last two prefilled behind them."""
    slots = Slots(num_layers, 2, len(tokens))
    slots.reserve(len(tokens))
    device, half = reference_NV.device, len(tokens) // 2
    first = [Stretch(0, 0, tokens[:half]), Stretch(1, 0, tokens[: half - 1])]
    plan, token_N, last = make_plan(slots, device, stretches=first)
    rows = [forward(token_N, plan, torch.tensor(last, device=device))[:1]]
    for position in range(half, len(tokens) - 2):
        both = [(tokens[position], position), (tokens[position - 1], position - 1)]
        plan, token_N, _ = make_plan(slots, device, decoding=both, runs=[(0, 2, position + 1)])
        rows.append(forward(token_N, plan, None)[:1])
    plan, token_N, _ = make_plan(slots, device, stretches=[Stretch(0, len(tokens) - 2, tokens[-2:])])
    rows.append(forward(token_N, plan, None))
    got_RV, expected_RV = torch.cat(rows).float(), reference_NV[half - 1 :].float()
    return (got_RV.log_softmax(-1) - expected_RV.log_softmax(-1)).abs().max().item()


def _unsupported(model: PreTrainedModel, why: str) -> ConfigError:
    return ConfigError(
        "the native generator cannot run this model",
        given=f"{type(model).__name__}: {why}",
        expected="a causal LM of transformers whose layers keep nothing but keys and values, through AttentionInterface",
        todo="use a Llama, Qwen, Mistral, Gemma, Phi or GPT-NeoX style model, or the vLLM engine",
    )
