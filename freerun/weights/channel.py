"""Immutable weight versions: the interface that every transport implements with identical bits.

The trainer publishes version `v` into a fresh buffer; a `WeightsRef` to it travels in control messages; readers adopt it. The
controller pins a version while a reader may still read it and releases it afterwards, so a buffer is reused only when nobody
pins it, and a reader that is slow or dead never blocks the trainer: the publisher takes another buffer. Live optimiser memory is
never handed out. Casting (fp32 master to the generator's dtype) happens at publication.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from freerun.types import WeightsRef


class Publisher(Protocol):
    """The trainer's end."""

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsRef:
        """Copy `tensors` (cast to the publisher's dtype) into a buffer nobody pins. Versions must increase.

        The newest version is always held; raises `WeightsError` if `version` is not larger than the last one.
        """
        ...

    def pin(self, version: int) -> None:
        """Keep `version` readable until it is released as often as it was pinned."""
        ...

    def release(self, version: int) -> None:
        """Undo one `pin`."""
        ...

    def close(self) -> None:
        """Free every buffer, shared ones included."""
        ...


class Subscriber(Protocol):
    """A reader's end; made where the reader lives."""

    def adopt(self, ref: WeightsRef, *, verify: bool = False) -> Mapping[str, Tensor]:
        """The tensors of `ref`: views of the published buffer where the transport can map it (valid while the version is pinned),
        copies otherwise. With `verify`, raises `WeightsError` if the bytes do not match `ref.checksum`."""
        ...

    def close(self) -> None: ...


ALIGNMENT = 64
"""Byte alignment of every tensor in a buffer: a cache line, and enough for any dtype."""


def manifest_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    """Lay `tensors` out one after another: name to (dtype name, shape, byte offset), and the total number of bytes.

    `dtype` casts floating point tensors; others keep theirs.
    """
    manifest, offset = {}, 0
    for name, tensor in tensors.items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        manifest[name] = (str(kind).removeprefix("torch."), tuple(tensor.shape), offset)
        size = tensor.numel() * kind.itemsize
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return manifest, offset


def views(buffer_N: Tensor, manifest: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, Tensor]:
    """Tensors over a flat uint8 buffer, without copying."""
    tensors = {}
    for name, (dtype_name, shape, offset) in manifest.items():
        dtype = _DTYPES[dtype_name]
        size = dtype.itemsize
        for length in shape:
            size *= length
        tensors[name] = buffer_N[offset : offset + size].view(dtype).view(shape)
    return tensors


def checksum(buffer_N: Tensor) -> str:
    """SHA-256 of a flat uint8 CPU buffer."""
    return hashlib.sha256(memoryview(buffer_N.numpy())).hexdigest()


_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}
