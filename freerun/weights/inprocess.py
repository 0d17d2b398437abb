"""Weights within one process: readers get the publisher's snapshot by reference, nothing is copied at adoption.

Shape suffix: N bytes of a flat buffer.
"""

import itertools
import weakref
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from freerun.types import WeightsRef
from freerun.weights.buffers import Pool
from freerun.weights.channel import Manifest, checksum, dtype_named, fill, manifest_of, unreachable, verify_bytes, views

TRANSPORT = "inprocess"


def publisher(*, dtype: str = "auto", checksum: bool = False) -> Callable[[], "InProcessPublisher"]:
    """Factory of the trainer's end. `dtype` is a torch dtype's name, or `"auto"` to publish tensors as they are."""
    return partial(InProcessPublisher, dtype=dtype_named(dtype), checksum=checksum)


def subscriber() -> Callable[[], "InProcessSubscriber"]:
    """Factory of a reader's end."""
    return InProcessSubscriber


class InProcessPublisher:
    """Snapshots live on the tensors' own device where they share one, else in CPU memory. See `channel.Publisher`."""

    def __init__(self, *, dtype: torch.dtype | None, checksum: bool = False) -> None:
        self._dtype, self._checksum = dtype, checksum
        self._device = torch.device("cpu")
        self._views: list[tuple[Tensor, Manifest, dict[str, Tensor]]] = []
        self._pool: Pool[Tensor] = Pool(self._allocate, lambda buffer: None, transport=TRANSPORT)
        self._address = next(_ADDRESSES)
        _PUBLISHERS[self._address] = self

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsRef:
        manifest, size = manifest_of(tensors, self._dtype)
        devices = {t.device for t in tensors.values()}
        self._device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        buffer_N = self._pool.take(version, size)
        self._views = [kept for kept in self._views if self._pool.holds(kept[0])]
        fill(self._viewed(buffer_N, manifest), manifest, tensors)
        self._pool.commit(version, buffer_N)
        return WeightsRef(
            version=version,
            transport=TRANSPORT,
            address=self._address,
            manifest=manifest,
            num_bytes=size,
            checksum=checksum(buffer_N[:size].cpu()) if self._checksum else "",
        )

    def read(self, ref: WeightsRef) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The bytes of a version and its tensors, by reference. Raises `WeightsError` if they are gone."""
        buffer_N = self._pool.get(ref.version)
        return buffer_N[: ref.num_bytes], self._viewed(buffer_N, ref.manifest)

    def pin(self, version: int) -> None:
        self._pool.pin(version)

    def release(self, version: int) -> None:
        self._pool.release(version)

    def close(self) -> None:
        self._pool.close()
        self._views = []

    def _viewed(self, buffer_N: Tensor, manifest: Manifest) -> dict[str, Tensor]:
        """The tensors of `buffer_N`, made once: on a GPU making them takes longer than filling them."""
        for buffer, known, tensors in self._views:
            if buffer is buffer_N and known == manifest:
                return tensors
        tensors = views(buffer_N, manifest)
        self._views = [*self._views, (buffer_N, manifest, tensors)]
        return tensors

    def _allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)


class InProcessSubscriber:
    """Reads any publisher of this process. See `channel.Subscriber`."""

    def adopt(self, ref: WeightsRef, *, verify: bool = False) -> Mapping[str, Tensor]:
        publisher = _PUBLISHERS.get(ref.address) if ref.transport == TRANSPORT else None
        if publisher is None:
            raise unreachable(ref, TRANSPORT)
        buffer_N, tensors = publisher.read(ref)
        if verify:
            verify_bytes(buffer_N.cpu(), ref)
        return dict(tensors)

    def close(self) -> None:
        """Nothing to free: the publisher owns the buffers."""


_ADDRESSES = itertools.count()
_PUBLISHERS: "weakref.WeakValueDictionary[int, InProcessPublisher]" = weakref.WeakValueDictionary()
