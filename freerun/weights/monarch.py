"""Weights between hosts: one-sided reads of the publisher's memory, over RDMA where there is any, else over Monarch's TCP.

Both ends must live in executors under `placement.monarch`: Monarch finds its own process through the context of the call. A
version is one flat buffer, registered once and reused, because registering many small tensors costs more than moving them.
It begins with a header of 64 bytes, of which the first eight are the version (-1 while it is being written). The publisher
takes no part in a read, so readers cost the trainer nothing but bandwidth. Buffers are in CPU memory.

Shape suffix: N bytes of a flat buffer.
"""

import logging
import mmap
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from monarch.config import configure
from monarch.rdma import RDMABuffer, RDMATcpFallbackWarning, get_rdma_backend
from torch import Tensor

from freerun.types import WeightsRef
from freerun.weights.buffers import Pool
from freerun.weights.channel import checksum, dtype_named, fill, manifest_of, unreachable, verify_bytes, views

TRANSPORT = "monarch"
HEADER = 64
WRITING = -1
TCP_CHUNK = 8
"""MiB per message of the TCP fallback. Measured: 1.1 GB/s, where Monarch's default of 64 gives 0.25."""

log = logging.getLogger(__name__)


def publisher(*, dtype: str = "auto", checksum: bool = False) -> Callable[[], "MonarchPublisher"]:
    """Factory of the trainer's end. `dtype` is a torch dtype's name, or `"auto"` to publish tensors as they are."""
    return partial(MonarchPublisher, dtype=dtype_named(dtype), checksum=checksum)


def subscriber(*, timeout: int = 300) -> Callable[[], "MonarchSubscriber"]:
    """Factory of a reader's end. `timeout` is the most seconds that one read may take."""
    return partial(MonarchSubscriber, timeout=timeout)


@dataclass(slots=True)
class _Region:
    """Memory that other processes may read."""

    memory_N: Tensor
    remote: RDMABuffer

    def mark(self, version: int) -> None:
        self.memory_N[:8].view(torch.int64).fill_(version)


def _allocate(size: int) -> _Region:
    memory_N = torch.zeros(HEADER + size, dtype=torch.uint8)  # zeros: every page is there before the first version is timed
    return _Region(memory_N, RDMABuffer(memory_N))


def _discard(region: _Region) -> None:
    region.mark(WRITING)
    region.remote.drop().get()


def _prepare() -> None:
    """Tune the fallback of this process if it is what there is, and say once in the log which backend is used."""
    backend = get_rdma_backend()
    log.info("weights travel over Monarch's backend '%s'", backend)
    if backend == "tcp":
        warnings.filterwarnings("ignore", category=RDMATcpFallbackWarning)
        configure(rdma_max_chunk_size_mb=TCP_CHUNK)


class MonarchPublisher:
    """See `channel.Publisher`."""

    def __init__(self, *, dtype: torch.dtype | None, checksum: bool) -> None:
        _prepare()
        self._dtype, self._checksum = dtype, checksum
        self._pool: Pool[_Region] = Pool(_allocate, _discard, transport=TRANSPORT)

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsRef:
        manifest, size = manifest_of(tensors, self._dtype)
        region = self._pool.take(version, size)
        region.mark(WRITING)
        fill(views(region.memory_N[HEADER:], manifest), manifest, tensors)
        region.mark(version)
        self._pool.commit(version, region)
        return WeightsRef(
            version=version,
            transport=TRANSPORT,
            address=region.remote,
            manifest=manifest,
            num_bytes=size,
            checksum=checksum(region.memory_N[HEADER : HEADER + size]) if self._checksum else "",
        )

    def pin(self, version: int) -> None:
        self._pool.pin(version)

    def release(self, version: int) -> None:
        self._pool.release(version)

    def close(self) -> None:
        self._pool.close()


class MonarchSubscriber:
    """See `channel.Subscriber`. Reads into memory of its own, which it reuses once no tensor views it any more."""

    def __init__(self, *, timeout: int) -> None:
        _prepare()
        self._timeout = timeout
        self._landings: list[_Landing] = []

    def adopt(self, ref: WeightsRef, *, verify: bool = False) -> Mapping[str, Tensor]:
        if ref.transport != TRANSPORT:
            raise unreachable(ref, TRANSPORT)
        landing = self._landing(ref.address.size())
        try:
            ref.address.read_into(landing.window, timeout=self._timeout).get()
        except Exception as error:  # Monarch does not say which kinds there are; whichever it is, the version is out of reach
            raise unreachable(ref, TRANSPORT) from error
        memory_N = landing.tensor()
        if int(memory_N[:8].view(torch.int64)) != ref.version:
            raise unreachable(ref, TRANSPORT)
        buffer_N = memory_N[HEADER : HEADER + ref.num_bytes]
        if verify:
            verify_bytes(buffer_N, ref)
        return views(buffer_N, ref.manifest)

    def _landing(self, size: int) -> "_Landing":
        """Memory of `size` bytes that no tensor views. Any other that is free and of another size is given back."""
        self._landings = [x for x in self._landings if len(x.window) == size or not x.is_free()]
        free = next((x for x in self._landings if x.is_free()), None)
        if free is None:
            free = _Landing(size)
            self._landings.append(free)
        return free

    def close(self) -> None:
        """Let go of all memory; what a tensor views is freed with the tensor."""
        self._landings = []


class _Landing:
    """Memory to read into. Every tensor made from it refers to `_memory`, so its count of references tells when it is free."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (mmap.MAP_POPULATE if sys.platform == "linux" else 0)
        self._memory = mmap.mmap(-1, size, flags=flags)
        self.window = memoryview(self._memory)
        self._idle = self._references()

    def _references(self) -> int:
        return sys.getrefcount(self._memory)

    def is_free(self) -> bool:
        return self._references() == self._idle

    def tensor(self) -> Tensor:
        return torch.frombuffer(self._memory, dtype=torch.uint8)
