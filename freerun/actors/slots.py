"""Keys and values of the running responses: preallocated slots, and attention over them without padding.

Shapes: L layers, S slots, H query heads, K key/value heads, G query heads per key/value head, T positions (capacity), D head
width, N tokens of one forward pass (all responses concatenated, no padding), k experts that a token goes to.

A forward pass is described by a `Plan`, made once and used by every layer: where each token's key and value go, and which
stretches of queries attend together. The compiled kernel, where it applies, needs only the former. The library's attends over
rectangles; grouped queries fold into the query length, so keys and values are never expanded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from freerun.actors import kernels
from freerun.ops.transfer import tensor_on

_ROUND = 16
_REACH = 32
_CALL_COST = 48
"""Cost of one more attention call, in (response, position) pairs read: measured at about 15 us against 0.3 us on one core."""


class Slots:
    """Storage [L, S, K, T, D] for keys and for values. Allocated at the first write, when head counts and widths are known; `T`
    doubles when a response needs more, up to `limit`. Where routing is recorded it is kept beside them, as if it were the keys
    of one head, so that it goes wherever they go."""

    def __init__(self, num_layers: int, num_slots: int, limit: int) -> None:
        self.num_layers = num_layers
        self.num_slots = num_slots
        self.limit = limit
        self.capacity = 0
        self.attention: Callable[..., Tensor] | None = None
        self.keys_LSKTD: Tensor | None = None
        self.values_LSKTD: Tensor | None = None
        self.routing_LS1Tk: Tensor | None = None

    def reserve(self, length: int) -> None:
        """Make room for `length` positions per slot; what is stored stays."""
        if length <= self.capacity:
            return
        self.capacity = -(-max(length, min(2 * self.capacity, self.limit)) // _ROUND) * _ROUND
        if self.keys_LSKTD is not None:
            self.keys_LSKTD = self._grown(self.keys_LSKTD)
            self.values_LSKTD = self._grown(self.values_LSKTD)
        if self.routing_LS1Tk is not None:
            self.routing_LS1Tk = self._grown(self.routing_LS1Tk)

    def allocate(self, key_NKD: Tensor, value_NKD: Tensor) -> None:
        """Make the storage for such keys and values, unless it is there."""
        if self.keys_LSKTD is None:
            self.keys_LSKTD = self._empty(key_NKD)
            self.values_LSKTD = self._empty(value_NKD)
            if key_NKD.shape == value_NKD.shape:
                self.attention = kernels.attention(self.keys_LSKTD)

    @property
    def compiled(self) -> bool:
        """Whether attention is a kernel of our own."""
        return self.attention is not None

    def write(self, layer: int, key_NKD: Tensor, value_NKD: Tensor, plan: "Plan") -> None:
        """Store the keys and values of a forward pass where its plan says."""
        self.allocate(key_NKD, value_NKD)
        row_M = plan.rows(key_NKD.shape[1], self.capacity)
        self.keys_LSKTD[layer].view(-1, key_NKD.shape[2]).index_copy_(0, row_M, key_NKD.reshape(-1, key_NKD.shape[2]))
        self.values_LSKTD[layer].view(-1, value_NKD.shape[2]).index_copy_(0, row_M, value_NKD.reshape(-1, value_NKD.shape[2]))

    def write_routing(self, expert_LNk: Tensor, plan: "Plan") -> None:
        """Store which experts the tokens of a forward pass went to."""
        if self.routing_LS1Tk is None:
            num_routers, _, num_active = expert_LNk.shape
            shape = (num_routers, self.num_slots, 1, self.capacity, num_active)
            self.routing_LS1Tk = expert_LNk.new_zeros(shape, dtype=torch.int16)
        self.routing_LS1Tk[:, plan.slot_N, 0, plan.position_N] = expert_LNk.to(torch.int16)

    def routing(self, slot: int, length: int) -> Tensor | None:
        """Experts [L, length + 1, k] of the first `length` positions of a slot, and -1 for one more; None if none are kept."""
        if self.routing_LS1Tk is None:
            return None
        return F.pad(self.routing_LS1Tk[:, slot, 0, :length].cpu(), (0, 0, 0, 1), value=-1)

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of slot `sources[i]` into slot `targets[i]`, or of the only source into all."""
        kept = self._kept()
        device = kept[0].device if kept else "cpu"
        source_P, target_P = tensor_on(device, sources), tensor_on(device, targets)
        for storage in kept:
            storage[:, target_P, :, :length] = storage[:, source_P, :, :length]

    def snapshot(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """Keys and values [L, K, length, D] of the first `length` positions of a slot, copied; and routing, if it is kept."""
        return tuple(storage[:, slot, :, :length].clone() for storage in self._kept())

    def restore(self, snapshot: tuple[Tensor, ...], slot: int, length: int) -> None:
        """Write the first `length` positions of a snapshot into a slot."""
        for storage, saved in zip(self._kept(), snapshot, strict=True):
            storage[:, slot, :, :length] = saved[:, :, :length]

    def clear(self, slot: int) -> None:
        """Zero a slot, so that values that are not finite cannot reach whoever uses it next."""
        for storage in self._kept():
            storage[:, slot] = 0

    def _kept(self) -> list[Tensor]:
        return [s for s in (self.keys_LSKTD, self.values_LSKTD, self.routing_LS1Tk) if s is not None]

    def _empty(self, like_NKD: Tensor) -> Tensor:
        # On CUDA there is one more, for the tokens that only fill up a graph.
        num_slots = self.num_slots + like_NKD.is_cuda
        shape = (self.num_layers, num_slots, like_NKD.shape[1], self.capacity, like_NKD.shape[2])
        # Zeros, not empty: masked positions still enter a product, and 0 * NaN would not vanish.
        return like_NKD.new_zeros(shape)

    def _grown(self, storage: Tensor) -> Tensor:
        grown = storage.new_zeros((*storage.shape[:3], self.capacity, storage.shape[4]))
        grown[:, :, :, : storage.shape[3]] = storage
        return grown


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens to run through the model: they follow the `start` positions that slot `slot` already holds."""

    slot: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Plan:
    """One forward pass. `slot_N` and `position_N` say where each token belongs; `blocks` partition the queries, of which the
    first `decoding` are one each for slots 0 to n."""

    slots: Slots
    decoding: int
    slot_N: Tensor
    position_N: Tensor
    blocks: "Sequence[DecodeBlock | PrefillBlock]"
    _row_M: Tensor | None = None
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def rows(self, kv_heads: int, capacity: int) -> Tensor:
        """Flat row of [S, K, T] for each (token, head)."""
        if self._row_M is None:
            head_K = torch.arange(kv_heads, device=self.slot_N.device)
            row_NK = (self.slot_N[:, None] * kv_heads + head_K) * capacity + self.position_N[:, None]
            self._row_M = row_NK.flatten()
        return self._row_M

    def attend(
        self,
        layer: int,
        query_NHD: Tensor,
        key_NKD: Tensor,
        value_NKD: Tensor,
        *,
        scale: float | None,
        window: int | None = None,
        softcap: float | None = None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """Store this layer's keys and values, then attend causally within each response. Returns [N, H, D].

        `window` limits how far back a query sees (itself included); `softcap` and `sinks_H` as in Gemma 2 and gpt-oss.
        """
        self.slots.allocate(key_NKD, value_NKD)
        keys_SKTD, values_SKTD = self.slots.keys_LSKTD[layer], self.slots.values_LSKTD[layer]
        if self.slots.attention is not None and softcap is None and sinks_H is None:
            scale = query_NHD.shape[2] ** -0.5 if scale is None else scale
            q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (query_NHD, key_NKD, value_NKD))
            where = (self.slot_N, self.position_N)
            return self.slots.attention(q, k, v, keys_SKTD, values_SKTD, *where, scale=scale, window=window)
        self.slots.write(layer, key_NKD, value_NKD, self)
        kv_heads = key_NKD.shape[1]
        outputs = []
        for index, block in enumerate(self.blocks):
            query = block.query(query_NHD, kv_heads)
            key, value, causal = block.keys(keys_SKTD, values_SKTD, key_NKD, value_NKD)
            at = (index, window)
            if at not in self._masks:
                self._masks[at] = block.mask(self, window, query_NHD.dtype)
            mask = self._masks[at]
            if softcap is None and sinks_H is None:
                out = F.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    attn_mask=mask,
                    is_causal=causal and mask is None,
                    scale=scale,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            else:
                out = _plain_attention(query, key, value, mask, causal, scale, softcap, sinks_H)
            outputs.append(block.output(out))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [n, 1, 1, T] of the decoding responses, up to the longest of them; made once."""
        at = (-1, window)
        if at not in self._masks:
            blocks = [block for block in self.blocks if isinstance(block, DecodeBlock)]
            at_n111 = self.position_N[: self.decoding, None, None, None]
            self._masks[at] = _causal_mask(at_n111, max(block.length for block in blocks), window, dtype)
        return self._masks[at]


@dataclass(frozen=True, slots=True)
class DecodeBlock:
    """Slots `first` to `last`, one query each, none longer than `length`."""

    first: int
    last: int
    length: int

    def query(self, query_NHD: Tensor, kv_heads: int) -> Tensor:
        heads = query_NHD.shape[1]
        return query_NHD[self.first : self.last].reshape(self.last - self.first, kv_heads, heads // kv_heads, -1)

    def keys(self, keys_SKTD: Tensor, values_SKTD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> tuple[Tensor, Tensor, bool]:
        here = slice(self.first, self.last)
        return keys_SKTD[here, :, : self.length], values_SKTD[here, :, : self.length], False

    def mask(self, plan: "Plan", window: int | None, dtype: torch.dtype) -> Tensor:
        return plan.decode_mask(window, dtype)[self.first : self.last, ..., : self.length]

    def output(self, out: Tensor) -> Tensor:
        return out.reshape(self.last - self.first, -1, out.shape[-1])


@dataclass(frozen=True, slots=True)
class PrefillBlock:
    """Stretches of equal length and start, tokens `first` to `last` of the pass, in slots `slot_P`."""

    first: int
    last: int
    start: int
    slot_P: Tensor

    def query(self, query_NHD: Tensor, kv_heads: int) -> Tensor:
        return self._folded(query_NHD)

    def keys(self, keys_SKTD: Tensor, values_SKTD: Tensor, key_NKD: Tensor, value_NKD: Tensor) -> tuple[Tensor, Tensor, bool]:
        if self.start == 0:
            return self._folded(key_NKD), self._folded(value_NKD), True
        end = self.start + (self.last - self.first) // len(self.slot_P)
        return keys_SKTD[self.slot_P, :, :end], values_SKTD[self.slot_P, :, :end], False

    def mask(self, plan: "Plan", window: int | None, dtype: torch.dtype) -> Tensor | None:
        length = (self.last - self.first) // len(self.slot_P)
        if self.start == 0 and (window is None or window >= length):
            return None
        return _causal_mask(plan.position_N[self.first : self.first + length, None], self.start + length, window, dtype)

    def output(self, out: Tensor) -> Tensor:
        return out.transpose(1, 2).reshape(self.last - self.first, out.shape[1], out.shape[3])

    def _folded(self, x_NHD: Tensor) -> Tensor:
        return x_NHD[self.first : self.last].view(len(self.slot_P), -1, *x_NHD.shape[1:]).transpose(1, 2)


class Partition:
    """How the decoding slots are cut into runs for attention; kept while every response still fits its run."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, int]] = []
        self._steps = 0

    def reset(self) -> None:
        """Responses have moved to other slots."""
        self._steps = 0

    def runs(self, lengths: Sequence[int], capacity: int) -> list[tuple[int, int, int]]:
        """Runs `(first, last, length)` for slots that hold `lengths` positions, where each grows by one per call."""
        if not self._steps or self._runs[-1][1] != len(lengths):
            self._runs = partition([n + _ROUND // 2 for n in lengths], capacity)
            self._steps = 1 + min(length - max(lengths[first:last]) for first, last, length in self._runs)
        self._steps -= 1
        return self._runs


def make_plan(
    slots: Slots,
    device: torch.device | str,
    *,
    decoding: Sequence[tuple[int, int]] = (),
    runs: Sequence[tuple[int, int, int]] = (),
    stretches: Sequence[Stretch] = (),
) -> tuple[Plan, Tensor, list[int]]:
    """One pass that decodes and prefills: its plan, its tokens [N], and for each stretch the row of its last token.

    `decoding` holds (token, position) for slots 0 to n, which `runs` partition (without, they are one); they are the first n
    rows of the pass.
    Stretches of equal start and length are computed together.
    """
    token, position = [t for t, _ in decoding], [p for _, p in decoding]
    slot = list(range(len(decoding)))
    if decoding and not runs:
        runs = [(0, len(decoding), max(position) + 1)]
    blocks: list[DecodeBlock | PrefillBlock] = [DecodeBlock(*run) for run in runs]
    last = [0] * len(stretches)
    alike: dict[tuple[int, int], list[int]] = {}
    for index, stretch in enumerate(stretches):
        alike.setdefault((stretch.start, len(stretch.tokens)), []).append(index)
    for (start, length), members in alike.items():
        first = len(token)
        for index in members:
            token += stretches[index].tokens
            slot += [stretches[index].slot] * length
            position += range(start, start + length)
            last[index] = len(token) - 1
        slot_P = tensor_on(device, [stretches[index].slot for index in members])
        blocks.append(PrefillBlock(first, len(token), start, slot_P))
    token_N, slot_N, position_N = tensor_on(device, [token, slot, position], torch.int64)
    return Plan(slots, len(decoding), slot_N, position_N, blocks), token_N, last


def partition(lengths: Sequence[int], capacity: int) -> list[tuple[int, int, int]]:
    """Cut neighbouring slots into runs `(first, last, length)` such that reading every run up to its longest response, plus a
    fixed cost per run, is cheapest. Neighbours of equal length, after rounding up, stay together; over what remains this is the
    best of all cuts into runs of at most `_REACH` such pieces, by dynamic programming."""
    ends: list[int] = []
    sizes: list[int] = []
    for index, length in enumerate(lengths):
        rounded = min(-(-length // _ROUND) * _ROUND, capacity)
        if sizes and sizes[-1] == rounded:
            ends[-1] = index + 1
        else:
            sizes.append(rounded)
            ends.append(index + 1)
    starts = [0, *ends]
    best, cut = [0], [0]
    for last in range(1, len(sizes) + 1):
        longest, cheapest, start = 0, -1, last - 1
        for first in range(last - 1, max(-1, last - 1 - _REACH), -1):
            longest = max(longest, sizes[first])
            cost = best[first] + _CALL_COST + longest * (starts[last] - starts[first])
            if cheapest < 0 or cost < cheapest:
                cheapest, start = cost, first
        best.append(cheapest)
        cut.append(start)
    runs, last = [], len(sizes)
    while last:
        first = cut[last]
        runs.append((starts[first], starts[last], max(sizes[first:last])))
        last = first
    return runs[::-1]


def _causal_mask(at_Q1: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Zero where a query at position `at_Q1` sees one of the first `length` positions, else minus infinity."""
    seen_T = torch.arange(length, device=at_Q1.device)
    hidden = seen_T > at_Q1
    if window is not None:
        hidden |= seen_T <= at_Q1 - window
    return torch.zeros(hidden.shape, dtype=dtype, device=at_Q1.device).masked_fill_(hidden, -torch.inf)


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention written out, for what the fused kernel cannot express."""
    batch, _, length, width = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(batch, kv_heads, -1, length, width)
    score = torch.einsum("bkgqd,bktd->bkgqt", folded, key) * (scale if scale is not None else width**-0.5)
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    if mask is not None:
        score = score + mask.unsqueeze(-3)
    elif causal:
        score = score.masked_fill(torch.ones_like(score, dtype=torch.bool).triu(1), -torch.inf)
    if sinks_H is not None:
        # One of the two middle dimensions holds a head's group: the first when prefilling, the second when decoding.
        sink = sinks_H.view(1, kv_heads, folded.shape[2], -1, 1).expand(*score.shape[:-1], 1)
        prob = torch.cat([score, sink.to(score)], -1).softmax(-1, dtype=torch.float32)[..., :-1]
    else:
        prob = score.softmax(-1, dtype=torch.float32)
    out = torch.einsum("bkgqt,bktd->bkgqd", prob.to(value.dtype), value)
    return out.reshape(batch, -1, length, value.shape[3])
