"""How the next token is drawn: counter-based uniforms, truncation, inverse CDF, and the log-prob that goes with it.

Shapes: B responses, V vocabulary, K candidates, C chunks of the vocabulary, W tokens of a chunk.

A response draws its token at position `t` from the uniform `u(seed, sample, t)`, a hash, so what it says depends on nothing
that shares the batch with it. The recorded log-prob is that of the distribution that was really sampled: temperature applied,
tokens cut by a truncation removed, the rest renormalised. Every truncation is a threshold on the scaled logits of its row: a
token that ties with the last one kept is kept as well.

Sources: SplitMix64 (Steele, Lea, Flood 2014); top-p (Holtzman et al., arXiv 1904.09751); min-p (arXiv 2407.01082).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freerun.ops.transfer import tensor_on
from freerun.types import Sampling

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WIDTH = 256
_CANDIDATES = 256


def stream_key(seed: int, sample: int) -> int:
    """Where the stream of sample `sample` of the request seeded `seed` starts: an int64."""
    return _signed(_mix(_mix(seed) + sample))


def uniform(key_B: Tensor, position_B: Tensor) -> Tensor:
    """Uniforms [B] float64 in [0, 1) for the streams `key_B` (int64, from `stream_key`) at `position_B` (int64)."""
    z = key_B + (position_B + 1) * _signed(_GOLDEN)
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(_MULTIPLY[0])
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(_MULTIPLY[1])
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The settings of B responses as tensors, and which of the costly steps any of them needs."""

    temperature_B1: Tensor
    greedy_B: Tensor
    top_k_B: Tensor
    top_p_B1: Tensor
    min_p_B1: Tensor
    all_greedy: bool
    any_greedy: bool
    scaled: bool
    max_top_k: int
    any_top_p: bool
    any_min_p: bool

    @classmethod
    def of(cls, settings: Sequence[Sampling], device: torch.device | str = "cpu") -> "SamplingRows":
        greedy = [s.temperature == 0 for s in settings]
        temperature = [s.temperature or 1.0 for s in settings]

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return tensor_on(device, values, dtype)

        return cls(
            temperature_B1=column(temperature, torch.float32)[:, None],
            greedy_B=column(greedy, torch.bool),
            top_k_B=column([s.top_k for s in settings], torch.int64),
            top_p_B1=column([s.top_p for s in settings], torch.float32)[:, None],
            min_p_B1=column([s.min_p for s in settings], torch.float32)[:, None],
            all_greedy=all(greedy),
            any_greedy=any(greedy),
            scaled=any(t != 1.0 for t in temperature),
            max_top_k=max((s.top_k for s in settings), default=0),
            any_top_p=any(s.top_p < 1.0 for s in settings),
            any_min_p=any(s.min_p > 0.0 for s in settings),
        )

    def tensors(self) -> list[Tensor]:
        """Those with a row for each response."""
        return [self.temperature_B1, self.greedy_B, self.top_k_B, self.top_p_B1, self.min_p_B1]

    def with_tensors(self, *tensors: Tensor) -> "SamplingRows":
        """The same steps, for other responses, with `tensors` in the order of `tensors()`."""
        temperature_B1, greedy_B, top_k_B, top_p_B1, min_p_B1 = tensors
        rows = replace(self, temperature_B1=temperature_B1, greedy_B=greedy_B, top_k_B=top_k_B)
        return replace(rows, top_p_B1=top_p_B1, min_p_B1=min_p_B1)


def drawn(logits_BV: Tensor, rows: SamplingRows, key_B: Tensor, position_B: Tensor) -> Tensor:
    """What `draw` gives for the streams `key_B` at `position_B`, as one tensor [2, B], so that it is one transfer: tokens and
    log-probs, in float64, which holds both exactly."""
    token_B, logp_B = draw(logits_BV, rows, uniform(key_B, position_B))
    return torch.stack([token_B.double(), logp_B.double()])


def draw(logits_BV: Tensor, rows: SamplingRows, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row: `(token_B int64, logp_B float32)`.

    `logp_B` is the log-prob under the distribution sampled from; a greedy row has probability one on its token, so 0. A row
    whose logits hold a NaN or no finite value gets `logp` NaN (its token means nothing), other rows are untouched.
    """
    if rows.all_greedy:
        top_B, token_B = logits_BV.max(-1)
        return token_B, torch.where(top_B.isfinite(), 0.0, torch.nan).float()
    scaled_BV = truncated(scale(logits_BV, rows), rows)
    token_B, logp_B = inverse_cdf(scaled_BV, uniform_B)
    if rows.any_greedy:
        top_B, best_B = logits_BV.max(-1)
        token_B = torch.where(rows.greedy_B, best_B, token_B)
        logp_B = torch.where(rows.greedy_B & top_B.isfinite(), 0.0, logp_B)
    return token_B, logp_B


def scale(logits_BV: Tensor, rows: SamplingRows) -> Tensor:
    """Logits in float32, divided by each row's temperature. Not a copy where nothing changes."""
    logits_BV = logits_BV.float()
    return logits_BV / rows.temperature_B1 if rows.scaled else logits_BV


def truncated(scaled_BV: Tensor, rows: SamplingRows) -> Tensor:
    """`scaled_BV` with the tokens that top-k, then top-p among those, then min-p remove set to minus infinity."""
    if not (rows.max_top_k or rows.any_top_p or rows.any_min_p):
        return scaled_BV
    limits = []
    if rows.max_top_k or rows.any_top_p:
        limits.append(_rank_threshold(scaled_BV, rows))
    if rows.any_min_p:
        limits.append(scaled_BV.amax(-1, keepdim=True) + rows.min_p_B1.log())
    limit_B1 = torch.stack(limits).amax(0)
    return scaled_BV.masked_fill(scaled_BV < limit_B1, -torch.inf)


def inverse_cdf(scaled_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token whose bin of the cumulative softmax holds `uniform_B`, and its log-prob.

    Cumulates chunk sums first and one chunk after that, in float64, so the vocabulary is neither sorted nor cumulated whole.
    A token of probability zero is never returned.
    """
    prob_BV = torch.softmax(scaled_BV, -1)
    missing = -prob_BV.shape[1] % _WIDTH
    if missing:
        prob_BV = torch.nn.functional.pad(prob_BV, (0, missing))
    prob_BCW = prob_BV.view(prob_BV.shape[0], -1, _WIDTH)
    upto_BC = prob_BCW.sum(-1).double().cumsum(-1)
    total_B1 = upto_BC[:, -1:]
    target_B1 = uniform_B[:, None] * total_B1
    chunk_B1 = (upto_BC <= target_B1).sum(-1, keepdim=True).clamp_(max=upto_BC.shape[1] - 1)
    inside_BW = prob_BCW.gather(1, chunk_B1[..., None].expand(-1, 1, _WIDTH)).squeeze(1).double().cumsum(-1)
    before_B1 = torch.where(chunk_B1 > 0, upto_BC.gather(1, (chunk_B1 - 1).clamp(min=0)), 0.0)
    # The chunk's float32 sum and its float64 cumulative differ by rounding: stay strictly below the latter's end.
    rest_B1 = torch.minimum(target_B1 - before_B1, inside_BW[:, -1:] * (1 - 2.0**-50))
    token_B1 = chunk_B1 * _WIDTH + (inside_BW <= rest_B1).sum(-1, keepdim=True).clamp_(max=_WIDTH - 1)
    logp_B1 = prob_BV.gather(1, token_B1).double().log() - total_B1.log()
    return token_B1.squeeze(1), logp_B1.squeeze(1).float()


def _rank_threshold(scaled_BV: Tensor, rows: SamplingRows) -> Tensor:
    """Smallest scaled logit [B, 1] that top-k, and then top-p within it, keep. Sorts no more candidates than the rows need."""
    vocabulary = scaled_BV.shape[1]
    count = min(vocabulary, max(rows.max_top_k, _CANDIDATES if rows.any_top_p else 1))
    while True:
        top_BK = scaled_BV.topk(count, sorted=True).values
        limit_B1 = scaled_BV.new_full((scaled_BV.shape[0], 1), -torch.inf)
        total_B1 = scaled_BV.logsumexp(-1, keepdim=True)
        if rows.max_top_k:
            last_B = torch.where(rows.top_k_B > 0, rows.top_k_B.clamp(max=vocabulary), 1) - 1
            kth_B1 = top_BK.gather(1, last_B[:, None])
            limit_B1 = torch.where(rows.top_k_B[:, None] > 0, kth_B1, limit_B1)
            kept_B1 = scaled_BV.masked_fill(scaled_BV < limit_B1, -torch.inf).logsumexp(-1, keepdim=True)
            total_B1 = torch.where(rows.top_k_B[:, None] > 0, kept_B1, total_B1)
        if not rows.any_top_p:
            return limit_B1
        prob_BK = (top_BK - total_B1).exp().masked_fill(top_BK < limit_B1, 0.0)
        upto_BK = prob_BK.cumsum(-1)
        last_B1 = (upto_BK < rows.top_p_B1).sum(-1, keepdim=True)
        settled_B1 = (last_B1 < count) | (rows.top_p_B1 >= 1.0) | (top_BK[:, -1:] < limit_B1)
        if count == vocabulary or bool(settled_B1.all()):
            nucleus_B1 = top_BK.gather(1, last_B1.clamp(max=count - 1))
            return torch.where(rows.top_p_B1 < 1.0, torch.maximum(nucleus_B1, limit_B1), limit_B1)
        count = min(vocabulary, count * 8)


def _mix(value: int) -> int:
    value = (value + _GOLDEN) % 2**64
    value = (value ^ (value >> 30)) * _MULTIPLY[0] % 2**64
    value = (value ^ (value >> 27)) * _MULTIPLY[1] % 2**64
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
