"""Kernels of our own for CUDA, in Triton, which comes with torch there: what the library does in many small launches.

Shapes: N tokens of one pass, C hidden width, H query heads, K key/value heads, G query heads per key/value head, S slots, T
positions, D head width, I inner width. Sums are in float32 whatever the inputs are, and products of float32 are exact float32.

Decoding a model that fits a GPU many times over waits for launches, not for memory, so a layer is made of few of them: the
products, and `norm`, `place`, `attend` and `gate` between them. `attend` reads each response over exactly its own length, so a
pass may hold any mixture of responses that decode and prompts, and needs no more than each token's slot and position.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_KEYS = 64
"""Positions that `attend` reads at once."""


def norm(hidden_NC: Tensor, added_NC: Tensor | None, weight_C: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Add `added_NC` to the float32 `hidden_NC`, in place. Returns the root-mean-square norm of the sum times `weight_C`, in
    `dtype`."""
    count, width = hidden_NC.shape
    out_NC = hidden_NC.new_empty(count, width, dtype=dtype)
    wide = triton.next_power_of_2(width)
    added = hidden_NC if added_NC is None else added_NC
    warps = 8 if wide > 2048 else 4
    _norm[(count,)](hidden_NC, added, weight_C, out_NC, eps, width, wide, added_NC is not None, num_warps=warps)
    return out_NC


def place(
    qkv_NO: Tensor,
    rotations_T2D: Tensor,
    norm_HD: Tensor | None,
    eps: float,
    keys_SKTD: Tensor,
    values_SKTD: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
) -> Tensor:
    """Rotate the queries and keys of a pass by their positions (`x cos + roll(x) sin`), after a norm over each head where
    `norm_HD` has its weights; put keys and values into their slots. Returns the queries [N, H, D]."""
    count, kv_heads, capacity, width = qkv_NO.shape[0], *keys_SKTD.shape[1:]
    heads = qkv_NO.shape[1] // width - 2 * kv_heads
    query_NHD = qkv_NO.new_empty(count, heads, width)
    _place[(count, heads + 2 * kv_heads)](
        *(qkv_NO, rotations_T2D, rotations_T2D if norm_HD is None else norm_HD, query_NHD, keys_SKTD, values_SKTD),
        *(slot_N, position_N, eps, capacity, heads, kv_heads, width, triton.next_power_of_2(width), norm_HD is not None),
        num_warps=1,
    )
    return query_NHD


def mix(
    query_NHD: Tensor,
    keys_SKTD: Tensor,
    values_SKTD: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of each token over positions 0 to its own of its slot, the last `window` of them if given: [N, H, D]."""
    count, heads, width = query_NHD.shape
    kv_heads, capacity = keys_SKTD.shape[1:3]
    group = heads // kv_heads
    out_NHD = torch.empty_like(query_NHD)
    _attend[(count, kv_heads)](
        *(query_NHD, keys_SKTD, values_SKTD, slot_N, position_N, out_NHD, scale, capacity, window or 0),
        *(kv_heads, group, max(16, triton.next_power_of_2(group)), width, max(16, triton.next_power_of_2(width)), _KEYS),
        num_warps=4,
        num_stages=2,
    )
    return out_NHD


def attend(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    keys_SKTD: Tensor,
    values_SKTD: Tensor,
    slot_N: Tensor,
    position_N: Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Store each token's key and value at its position of its slot, then attend as `mix` does."""
    keys_SKTD[slot_N, :, position_N] = key_NKD
    values_SKTD[slot_N, :, position_N] = value_NKD
    return mix(query_NHD.contiguous(), keys_SKTD, values_SKTD, slot_N, position_N, scale=scale, window=window)


def gate(gate_up_NI: Tensor) -> Tensor:
    """`silu(gate) up` of the two halves of each row: [N, I]."""
    count, inner = gate_up_NI.shape[0], gate_up_NI.shape[1] // 2
    out_NI = gate_up_NI.new_empty(count, inner)
    _gate[(count, triton.cdiv(inner, 1024))](gate_up_NI, out_NI, inner, 1024, num_warps=4)
    return out_NI


@triton.jit
def _norm(hidden, added, weight, out, eps, width: tl.constexpr, wide: tl.constexpr, add: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    col = tl.arange(0, wide)
    inside = col < width
    x = tl.load(hidden + row + col, mask=inside, other=0.0)
    if add:
        x += tl.load(added + row + col, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + row + col, x, mask=inside)
    x *= tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    x *= tl.load(weight + col, mask=inside, other=0.0)
    tl.store(out + row + col, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(
    qkv,
    rotations,
    norms,
    query,
    keys,
    values,
    slots,
    positions,
    eps,
    capacity,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    width: tl.constexpr,
    wide: tl.constexpr,
    normed: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    col = tl.arange(0, wide)
    inside = col < width
    source = qkv + (token * (heads + 2 * kv_heads) + head) * width
    slot, position = tl.load(slots + token), tl.load(positions + token)
    x = tl.load(source + col, mask=inside, other=0.0)
    if head < heads + kv_heads:
        half: tl.constexpr = width // 2
        opposite = tl.where(col < half, col + half, col - half)
        other = tl.load(source + opposite, mask=inside, other=0.0).to(tl.float32)
        turned = x.to(tl.float32)
        if normed:
            factor = tl.rsqrt(tl.sum(turned * turned, 0) / width + eps)
            turned *= factor * tl.load(norms + head * width + col, mask=inside, other=0.0)
            other *= factor * tl.load(norms + head * width + opposite, mask=inside, other=0.0)
        angle = rotations + position * 2 * width + col
        cos, sin = tl.load(angle, mask=inside, other=0.0), tl.load(angle + width, mask=inside, other=0.0)
        x = (turned * cos.to(tl.float32) + other * sin.to(tl.float32)).to(x.dtype)
    if head < heads:
        tl.store(query + (token * heads + head) * width + col, x, mask=inside)
    elif head < heads + kv_heads:
        tl.store(keys + ((slot * kv_heads + head - heads) * capacity + position) * width + col, x, mask=inside)
    else:
        tl.store(values + ((slot * kv_heads + head - heads - kv_heads) * capacity + position) * width + col, x, mask=inside)


@triton.jit
def _attend(
    query,
    keys,
    values,
    slots,
    positions,
    out,
    scale,
    capacity,
    window,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot, last = tl.load(slots + token), tl.load(positions + token)
    row, col, step = tl.arange(0, rows)[:, None], tl.arange(0, wide)[None, :], tl.arange(0, block)
    inside = (row < group) & (col < width)
    at = (token * kv_heads + head) * group * width + row * width + col
    q = tl.load(query + at, mask=inside, other=0.0)
    base = (slot * kv_heads + head) * capacity * width
    first = last * 0
    if window > 0:
        first = tl.maximum(last + 1 - window, 0)
    top = tl.full([rows], float("-inf"), tl.float32)
    total = tl.zeros([rows], tl.float32)
    mixed = tl.zeros([rows, wide], tl.float32)
    for start in range(first, last + 1, block):
        seen = start + step <= last
        cell = base + (start + step)[:, None] * width + col
        present = seen[:, None] & (col < width)
        k = tl.load(keys + cell, mask=present, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        prob = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(values + cell, mask=present, other=0.0)
        total = total * shrink + tl.sum(prob, 1)
        mixed = mixed * shrink[:, None] + tl.dot(prob.to(v.dtype), v, input_precision="ieee")
        top = higher
    tl.store(out + at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate(gate_up, out, inner, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * block + tl.arange(0, block)
    inside = col < inner
    x = tl.load(gate_up + row * 2 * inner + col, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * inner + col, (x * tl.sigmoid(x) * up).to(out.dtype.element_ty), mask=inside)
