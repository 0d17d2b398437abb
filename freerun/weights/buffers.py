"""Which buffer holds which version: the bookkeeping that every transport shares.

A buffer is free when its version is neither pinned nor the newest. Publishing takes a free buffer that is large enough and
allocates one if there is none, so it never waits for a reader.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from freerun.errors import WeightsError

Buffer = TypeVar("Buffer")

SPARES = 1
"""Free buffers kept for reuse; more are given back, so that a reader that once lagged costs memory only while it does."""


@dataclass(slots=True)
class _Held(Generic[Buffer]):
    buffer: Buffer
    size: int
    version: int = -1
    pins: int = 0


class Pool(Generic[Buffer]):
    """Buffers by version. `allocate` makes one of a number of bytes, `discard` frees one.

    One thread publishes, pins and releases; `get` may be called from any other, because lists are replaced, never changed.
    """

    def __init__(self, allocate: Callable[[int], Buffer], discard: Callable[[Buffer], None], *, transport: str) -> None:
        self._allocate, self._discard, self._transport = allocate, discard, transport
        self._held: list[_Held[Buffer]] = []
        self._newest = -1

    def take(self, version: int, size: int) -> Buffer:
        """A buffer of at least `size` bytes that nobody reads. Nothing is held for `version` until `commit`.

        Raises `WeightsError` unless `version` is larger than every earlier one.
        """
        if version <= self._newest:
            raise WeightsError(
                f"{self._transport} weights cannot publish version {version}",
                given=f"version {version} after version {self._newest}",
                expected="versions that increase",
                todo="publish each update once, and start a new publisher for a new run",
            )
        for held in [h for h in self._held if self._is_free(h) and h.size < size]:
            self._drop(held)
        free = next((h for h in self._held if self._is_free(h)), None)
        if free is None:
            free = _Held(self._allocate(size), size)
            self._held = [*self._held, free]
        free.version = -1
        return free.buffer

    def commit(self, version: int, buffer: Buffer) -> None:
        """`buffer` now holds `version`, the newest."""
        next(h for h in self._held if h.buffer is buffer).version = version
        self._newest = version
        self._trim()

    def get(self, version: int) -> Buffer:
        """The buffer that holds `version`. Raises `WeightsError` if it was reused or never published."""
        return self._find(version).buffer

    def pin(self, version: int) -> None:
        self._find(version).pins += 1

    def release(self, version: int) -> None:
        held = self._find(version)
        if held.pins == 0:
            raise WeightsError(
                f"{self._transport} weights of version {version} are not pinned",
                given="a release without a pin",
                expected="as many releases as pins",
                todo="this is a bug in the caller: pair every release with one pin",
            )
        held.pins -= 1
        self._trim()

    def holds(self, buffer: Buffer) -> bool:
        """Whether `buffer` is one of those here, free or not."""
        return any(held.buffer is buffer for held in self._held)

    def __len__(self) -> int:
        return len(self._held)

    def close(self) -> None:
        """Free every buffer, pinned ones included."""
        for held in self._held:
            self._drop(held)

    def _is_free(self, held: _Held[Buffer]) -> bool:
        return held.pins == 0 and (held.version == -1 or held.version != self._newest)

    def _find(self, version: int) -> _Held[Buffer]:
        for held in self._held:
            if held.version == version >= 0:
                return held
        raise WeightsError(
            f"{self._transport} weights of version {version} are gone",
            given=f"version {version}",
            expected=f"one of {sorted(h.version for h in self._held if h.version >= 0)}",
            todo="pin a version while a reader may still want it",
        )

    def _trim(self) -> None:
        for held in [h for h in self._held if self._is_free(h)][SPARES:]:
            self._drop(held)

    def _drop(self, held: _Held[Buffer]) -> None:
        self._held = [h for h in self._held if h is not held]
        self._discard(held.buffer)
