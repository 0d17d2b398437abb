"""Immutable weight versions: the interface that every transport implements with identical bits.

The trainer publishes version `v` into a fresh buffer; a `WeightsRef` to it travels in control messages; readers adopt it. The
controller pins a version while a reader may still read it and releases it afterwards, so a buffer is reused only when nobody
pins it, and a reader that is slow or dead never blocks the trainer: the publisher takes another buffer. Live optimiser memory
is never handed out. Casting (fp32 master to the generator's dtype) happens at publication.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from freerun.errors import WeightsError
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
        """The tensors of `ref`: views of the published buffer where the transport can map it, which hold while the version is
        pinned; else views of memory of this reader's own, which hold as long as anything refers to them. With `verify`, raises
        `WeightsError` if the bytes do not match `ref.checksum`; raises it, too, if the version is no longer held."""
        ...

    def close(self) -> None: ...


Manifest = Mapping[str, tuple[str, tuple[int, ...], int]]
"""Name to (dtype name, shape, byte offset)."""
ALIGNMENT = 64
"""Byte alignment of every tensor in a buffer: a cache line, and enough for any dtype."""


def manifest_of(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    """Lay `tensors` out one after another: name to (dtype name, shape, byte offset), and the total number of bytes.

    `dtype` casts floating point tensors; others keep theirs. Names that are tied to one tensor share its bytes.
    """
    manifest, offset = {}, 0
    seen: dict[tuple, tuple[str, tuple[int, ...], int]] = {}
    for name, tensor in tensors.items():
        identity = (
            (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        )
        if identity not in seen:
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            seen[identity] = (str(kind).removeprefix("torch."), tuple(tensor.shape), offset)
            offset += -(-tensor.numel() * kind.itemsize // ALIGNMENT) * ALIGNMENT
        manifest[name] = seen[identity]
    return manifest, offset


def fill(places: Mapping[str, Tensor], manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` to their `places` (`views` of a buffer), casting on the way; tied names are copied once. All of it is
    there when this returns, or, on the tensors' own device, for what that device does next."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            first.setdefault(manifest[name][2], name)
    away = any(tensors[name].device != places[name].device for name in first.values())
    if not first:
        return
    with torch.no_grad():
        # All in one call, which on CUDA is a few launches, and which waits for copies to other devices once and not each time.
        torch._foreach_copy_([places[n] for n in first.values()], [tensors[n] for n in first.values()], non_blocking=away)
    if away:
        torch.cuda.synchronize()


def views(buffer_N: Tensor, manifest: Manifest) -> dict[str, Tensor]:
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
    return hashlib.sha256(buffer_N.numpy().data).hexdigest()


def verify_bytes(buffer_N: Tensor, ref: WeightsRef) -> None:
    """Raises `WeightsError` unless `buffer_N` (uint8, CPU) has the checksum of `ref`."""
    found = checksum(buffer_N) if ref.checksum else ""
    if not ref.checksum or found != ref.checksum:
        raise WeightsError(
            f"weights of version {ref.version} failed verification over transport '{ref.transport}'",
            given=f"SHA-256 {found}" if ref.checksum else "a version published without a checksum",
            expected=f"SHA-256 {ref.checksum}" if ref.checksum else "a checksum to compare with",
            todo="publish with checksum=True; if both are there, the bytes changed on the way or the version was not pinned",
        )


def unreachable(ref: WeightsRef, transport: str) -> WeightsError:
    """The error for a version that this reader cannot find at its address."""
    return WeightsError(
        f"weights of version {ref.version} cannot be read over transport '{transport}'",
        given=f"transport '{ref.transport}', address {ref.address}",
        expected=f"a version that a live '{transport}' publisher holds",
        todo="use one transport on both ends, and pin a version while a reader may still want it",
    )


def dtype_named(name: str) -> torch.dtype | None:
    """The torch dtype called `name`; None for `"auto"`, which publishes tensors as they are.

    Raises `WeightsError` for a name that no tensor of a manifest can have.
    """
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise WeightsError(
            "unknown dtype for weights", given=name, expected=f"auto, {', '.join(_DTYPES)}", todo="correct the name"
        )
    return _DTYPES[name]


_DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
