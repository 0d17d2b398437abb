"""Weights between processes of one host: shared memory, mapped by readers without a copy.

A version is a file in the host's memory file system: a header of 64 bytes, which begins with the version as a 64-bit integer
(-1 while it is being written), then the tensors. The publisher keeps each of its files locked for as long as it lives, and
locks end with their process however it ends; so whoever can lock a file knows that its owner is dead and may remove it.

Shape suffix: N bytes of a flat buffer.
"""

import errno
import fcntl
import mmap
import os
import secrets
import struct
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from freerun.errors import WeightsError
from freerun.types import WeightsRef
from freerun.weights.buffers import Pool
from freerun.weights.channel import checksum, dtype_named, fill, manifest_of, unreachable, verify_bytes, views

TRANSPORT = "shared"
PREFIX = "freerun-"
HEADER = 64
WRITING = -1


def publisher(*, dtype: str = "auto", checksum: bool = False, run: str = "") -> Callable[[], "SharedPublisher"]:
    """Factory of the trainer's end. `dtype` is a torch dtype's name, or `"auto"` to publish tensors as they are.

    `run` becomes part of the files' names (default: a random token), so that no two runs meet and `sweep` can tell them apart.
    """
    return partial(SharedPublisher, dtype=dtype_named(dtype), checksum=checksum, run=run or secrets.token_hex(6))


def subscriber(*, device: str = "cpu") -> Callable[[], "SharedSubscriber"]:
    """Factory of a reader's end. On a CUDA `device` a reader gets tensors there, copied past its own memory."""
    return partial(SharedSubscriber, device=device)


def directory() -> Path:
    """Where the files are: the host's memory file system where it has one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def patterns(run: str) -> list[str]:
    """What the paths of all files of `run` look like, those included that are about to get their name."""
    return [str(directory() / f"{hidden}{PREFIX}{run}-*") for hidden in ("", ".")]


def sweep(run: str = "") -> list[str]:
    """Remove the files of dead publishers of `run`, or of all runs; the names of those removed.

    Safe at any time: files of living publishers are locked, and the files of other users cannot be opened. One that is about to
    be locked for the first time has a hidden name with the number of its owner.
    """
    removed = []
    unborn = [path for path in directory().glob(f".{PREFIX}{run}*") if not _runs(path)]
    for path in sorted([*unborn, *directory().glob(f"{PREFIX}{run}*")]):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # removed meanwhile, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return removed


def _runs(path: Path) -> bool:
    """Whether the process that made the file `path` is there."""
    try:
        os.kill(int(path.name.split("-")[2]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:
        return True
    return True


@dataclass(slots=True)
class _Segment:
    """One file, mapped and locked by its publisher."""

    path: Path
    descriptor: int
    header: mmap.mmap
    buffer_N: Tensor
    pinned: bool = False

    def pin(self) -> None:
        """Let CUDA copy to the pages directly."""
        if not self.pinned:
            _pin(self.buffer_N)
            self.pinned = True

    def unpin(self) -> None:
        if self.pinned:
            _unpin(self.buffer_N)
            self.pinned = False

    def mark(self, version: int) -> None:
        struct.pack_into("=q", self.header, 0, version)


def _pin(memory_N: Tensor) -> None:
    """Let CUDA read and write these pages directly, which is several times as fast as through pages of its own."""
    torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(memory_N.data_ptr(), len(memory_N), 0)))


def _unpin(memory_N: Tensor) -> None:
    torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(memory_N.data_ptr())))


def _allocate(run: str, size: int) -> _Segment:
    """A file of `size` bytes and its header, locked before it can be seen, with every page in memory.

    Raises `WeightsError` if the memory file system is too small: finding out later would be a bus error.
    """
    path = directory() / f"{PREFIX}{run}-{os.getpid()}-{secrets.token_hex(4)}"
    hidden = path.with_name(f".{path.name}")
    total = HEADER + max(size, HEADER)
    descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    hidden.rename(path)
    try:
        _reserve(descriptor, total)
    except OSError as error:
        path.unlink()
        os.close(descriptor)
        if error.errno != errno.ENOSPC:
            raise
        usage = os.statvfs(path.parent)
        raise WeightsError(
            f"no room for one version of the weights in {path.parent}",
            given=f"{total / 2**20:.0f} MiB wanted, {usage.f_bavail * usage.f_frsize / 2**20:.0f} MiB free",
            expected="room for about three versions",
            todo="give the container more shared memory (docker run --shm-size=8g), or run inline, or publish bfloat16",
        ) from error
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if sys.platform == "linux" else 0)
    memory = mmap.mmap(descriptor, total, flags=flags)
    return _Segment(path, descriptor, memory, torch.frombuffer(memory, dtype=torch.uint8, offset=HEADER))


def _reserve(descriptor: int, total: int) -> None:
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, total)
    else:
        os.truncate(descriptor, total)


def _discard(segment: _Segment) -> None:
    """Remove the file. Readers that mapped it keep their pages; its own are freed with the last tensor that views them."""
    segment.mark(WRITING)
    segment.unpin()
    segment.path.unlink(missing_ok=True)
    fcntl.flock(segment.descriptor, fcntl.LOCK_UN)
    os.close(segment.descriptor)


def _close(pool: Pool[_Segment], owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits the publisher, but not the files
        pool.close()


class SharedPublisher:
    """See `channel.Publisher`. Files of dead runs are swept when one is made; its own are removed by `close`, or at exit."""

    def __init__(self, *, dtype: torch.dtype | None, checksum: bool, run: str) -> None:
        sweep()
        self._dtype, self._checksum = dtype, checksum
        self._pool: Pool[_Segment] = Pool(partial(_allocate, run), _discard, transport=TRANSPORT)
        self._finalizer = weakref.finalize(self, _close, self._pool, os.getpid())

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsRef:
        manifest, size = manifest_of(tensors, self._dtype)
        segment = self._pool.take(version, size)
        segment.mark(WRITING)
        if any(tensor.is_cuda for tensor in tensors.values()):
            segment.pin()
        fill(views(segment.buffer_N, manifest), manifest, tensors)
        segment.mark(version)
        self._pool.commit(version, segment)
        return WeightsRef(
            version=version,
            transport=TRANSPORT,
            address=str(segment.path),
            manifest=manifest,
            num_bytes=size,
            checksum=checksum(segment.buffer_N[:size]) if self._checksum else "",
        )

    def pin(self, version: int) -> None:
        self._pool.pin(version)

    def release(self, version: int) -> None:
        self._pool.release(version)

    def close(self) -> None:
        self._finalizer()


class SharedSubscriber:
    """See `channel.Subscriber`. The tensors view the published pages, and writing to them changes this reader's copy only; on
    a CUDA device they are a copy there, and the pages stay mapped for the next version that is in them."""

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._mapped: dict[str, mmap.mmap] = {}

    def adopt(self, ref: WeightsRef, *, verify: bool = False) -> Mapping[str, Tensor]:
        if ref.transport != TRANSPORT:
            raise unreachable(ref, TRANSPORT)
        try:
            memory = _map(ref) if self._device.type == "cpu" else self._kept(ref)
        except (FileNotFoundError, ValueError) as error:
            raise unreachable(ref, TRANSPORT) from error
        if struct.unpack_from("=q", memory)[0] != ref.version:
            raise unreachable(ref, TRANSPORT)
        buffer_N = torch.frombuffer(memory, dtype=torch.uint8, offset=HEADER)[: ref.num_bytes]
        if verify:
            verify_bytes(buffer_N, ref)
        if self._device.type != "cpu":
            buffer_N = buffer_N.to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        return views(buffer_N, ref.manifest)

    def _kept(self, ref: WeightsRef) -> mmap.mmap:
        """A mapping of the file that shows each version written to it, known to CUDA. Those of files that are gone end."""
        for path in [path for path in self._mapped if not Path(path).exists()]:
            _unpin(torch.frombuffer(self._mapped.pop(path), dtype=torch.uint8))
        if ref.address not in self._mapped:
            descriptor = os.open(ref.address, os.O_RDWR | os.O_CLOEXEC)
            try:
                memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            finally:
                os.close(descriptor)
            _pin(torch.frombuffer(memory, dtype=torch.uint8))
            self._mapped[ref.address] = memory
        return self._mapped[ref.address]

    def close(self) -> None:
        """Let go of pages that CUDA knows; any other mapping ends with the last tensor that views it."""
        for memory in self._mapped.values():
            _unpin(torch.frombuffer(memory, dtype=torch.uint8))
        self._mapped = {}


def _map(ref: WeightsRef) -> mmap.mmap:
    """A private mapping of the version, made anew each time: one that was written to would not show a later version."""
    descriptor = os.open(ref.address, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, HEADER + max(ref.num_bytes, HEADER), access=mmap.ACCESS_COPY)
    finally:
        os.close(descriptor)
