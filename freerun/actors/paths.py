"""Which forward runs a model, and the proof, made once at the start, that it computes what the model itself computes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from freerun.actors import kernels
from freerun.actors.forward import Forward, HuggingFaceForward
from freerun.actors.gpu_llama import GpuLlamaForward
from freerun.actors.llama import LlamaForward, applies
from freerun.actors.slots import Slots, Stretch, make_plan
from freerun.errors import ConfigError
from freerun.models.routing import Routers

_PROBE = 24
"""Tokens of the comparison."""
_MOST_APART = 1e-3
"""Of log-probs in float32."""
_MOST_DIVERGENT = 0.05
"""KL divergence, on average over positions, in a type whose rounding alone moves single log-probs by 0.7. Measured for
SmolLM2-135M in bfloat16: 0.007; with one of twelve tokens forgotten 0.06, with no rotation of positions 1.4."""


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
        exact = reference_NV.dtype is torch.float32
        try:
            forward = _short(model) if fast and applies(model) else HuggingFaceForward(model, routers)
            error = (difference if exact else divergence)(forward, layers(model), reference_NV, tokens)
        except Exception as reason:
            raise _unsupported(model, f"{type(reason).__name__}: {reason}") from reason
    if not error <= (_MOST_APART if exact else _MOST_DIVERGENT):
        raise _unsupported(model, f"log-probs {'differ' if exact else 'diverge'} from the model's own forward by {error:.3g}")
    return forward


def _short(model: PreTrainedModel) -> Forward:
    """The short forward for the device of `model`."""
    ours = model.device.type == "cuda" and kernels.gpu_there()
    return GpuLlamaForward(model) if ours else LlamaForward(model)


def layers(model: PreTrainedModel) -> int:
    """Number of layers of the text part of `model`."""
    return model.config.get_text_config().num_hidden_layers


def difference(forward: Forward, num_layers: int, reference_NV: Tensor, tokens: Sequence[int]) -> float:
    """Largest difference in log-prob between `reference_NV`, logits of a plain forward, and what `forward` gives."""
    got_RV = _replayed(forward, num_layers, tokens, reference_NV.device)
    return (got_RV - reference_NV[-len(got_RV) :].float().log_softmax(-1)).abs().max().item()


def divergence(forward: Forward, num_layers: int, reference_NV: Tensor, tokens: Sequence[int]) -> float:
    """KL divergence of what `forward` gives for `tokens` from `reference_NV`, on average over positions."""
    got_RV = _replayed(forward, num_layers, tokens, reference_NV.device)
    expected_RV = reference_NV[-len(got_RV) :].float().log_softmax(-1)
    return F.kl_div(got_RV, expected_RV, reduction="batchmean", log_target=True).item()


def _replayed(forward: Forward, num_layers: int, tokens: Sequence[int], device: torch.device) -> Tensor:
    """Log-probs [R, V] after the later half of `tokens`, of which the first half is prefilled beside another response, most of
    the rest decoded beside it, and the last two prefilled behind them."""
    slots = Slots(num_layers, 2, len(tokens))
    slots.reserve(len(tokens))
    half = len(tokens) // 2
    first = [Stretch(0, 0, tokens[:half]), Stretch(1, 0, tokens[: half - 1])]
    plan, token_N, last = make_plan(slots, device, stretches=first)
    rows = [forward(token_N, plan, torch.tensor(last, device=device))[:1]]
    for position in range(half, len(tokens) - 2):
        both = [(tokens[position], position), (tokens[position - 1], position - 1)]
        plan, token_N, _ = make_plan(slots, device, decoding=both, runs=[(0, 2, position + 1)])
        rows.append(forward(token_N, plan, None)[:1])
    plan, token_N, _ = make_plan(slots, device, stretches=[Stretch(0, len(tokens) - 2, tokens[-2:])])
    rows.append(forward(token_N, plan, None))
    return torch.cat(rows).float().log_softmax(-1)


def _unsupported(model: PreTrainedModel, why: str) -> ConfigError:
    return ConfigError(
        "the native generator cannot run this model",
        given=f"{type(model).__name__}: {why}",
        expected="a causal LM of transformers whose layers keep nothing but keys and values, through AttentionInterface",
        todo="use a Llama, Qwen, Mistral, Gemma, Phi or GPT-NeoX style model, or the vLLM engine",
    )
