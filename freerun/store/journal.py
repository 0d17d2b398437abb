"""The journal: every item that was finished or dropped, on disk from the moment at which it was.

The file begins with a line that names the format. Then come frames: length of the body, CRC of the body, CRC of these two (4
bytes each, little-endian), and the body, which is a line of JSON and the payload in the caller's own encoding. A record is
appended before the store learns of it, so what the store holds is always in the file. A write that a crash cut short leaves a
torn tail, which opening cuts off, saying so; damage anywhere else is an error.
"""

import contextlib
import errno
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from freerun.errors import CheckpointError
from freerun.store.flusher import Flusher

MAGIC = b"freerun journal 1\n"
_FRAME = struct.Struct("<III")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How an item ended its way to the store: finished, with the `payload` and the `oldest` version in it, or dropped for a
    `reason`, which is empty if it was finished."""

    item: int
    uid: str
    oldest: int = -1
    reason: str = ""
    payload: bytes = b""


class Journal:
    """An append-only file of records, made if it is not there.

    The death of the process loses no record. When the machine goes down, at most `fsync_every - 1` are lost (0: the operating
    system decides); with `behind`, those that were appended while the disk was busy with the ones before. `cut` says what was
    torn off at opening, or is empty. Raises `CheckpointError` if the file is no journal, is damaged before its end, or cannot
    be written.
    """

    def __init__(self, path: Path, *, fsync_every: int = 1, behind: bool = False) -> None:
        self.path, self.fsync_every, self.cut = path, 0 if behind else fsync_every, ""
        self._unsynced = 0
        self._swap = threading.Lock()
        try:
            self._open(fsync_every)
        except OSError as error:
            raise _unwritable("the journal could not be opened", path, error) from error
        self._flusher = Flusher(self.flush) if behind else None

    def _open(self, fsync_every: int) -> None:
        """Find the end of the last whole record, and cut off what follows."""
        path = self.path
        self._fresh().unlink(missing_ok=True)
        if not path.exists() or path.stat().st_size < len(MAGIC):
            path.write_bytes(MAGIC)
            if fsync_every:
                _flush_directory(path.parent)
        self._end = len(MAGIC)
        for _, end in _frames(path):
            self._end = end
        torn = path.stat().st_size - self._end
        self._file = path.open("r+b", buffering=0)
        if torn:
            self.cut = f"{torn} bytes of a record whose writing the end of the last run cut short"
            self._file.truncate(self._end)
        self._file.seek(self._end)
        if fsync_every:
            self.flush()

    def finished(self, item: int, uid: str, oldest: int, payload: bytes) -> None:
        """Append this before `Admission.finish`."""
        self._append(Record(item=item, uid=uid, oldest=oldest, payload=payload))

    def dropped(self, item: int, uid: str, reason: str) -> None:
        """Append this with `Admission.drop`, so that a recovery drops the item again instead of trying it once more."""
        self._append(Record(item=item, uid=uid, reason=reason))

    def records(self) -> Iterator[Record]:
        """Every record, oldest first. Of an item that has several, the last one counts."""
        for body, _ in _frames(self.path):
            yield parsed(body)

    def compact(self, keep: Callable[[int], bool]) -> None:
        """Leave only the records of items for which `keep` is true, in one atomic step. An item may go when it has ended in the
        *oldest* checkpoint to which a resume could fall back: `keep = recovery.needed_by(its admission state)`."""
        fresh = self._fresh()
        try:
            fresh.unlink(missing_ok=True)
            other = Journal(fresh, fsync_every=0)
            for record in self.records():
                if keep(record.item):
                    other._append(record)
            other.flush()
            fresh.replace(self.path)
            _flush_directory(self.path.parent)
        except OSError as error:
            raise _unwritable("the journal could not be shortened", self.path, error) from error
        with self._swap:
            self._file.close()
            self._file, self._end = other._file, other._end

    def _fresh(self) -> Path:
        """Where compaction writes."""
        return self.path.with_name(self.path.name + ".compacting")

    def flush(self) -> None:
        """Return when everything appended is on the disk."""
        with self._swap:
            os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Return when everything is on the disk that can be written to."""
        if self._flusher is not None:
            self._flusher.stop()
        self._file.close()

    def _append(self, record: Record) -> None:
        head = {"item": record.item, "uid": record.uid, "oldest": record.oldest, "reason": record.reason}
        data = _framed(json.dumps(head).encode() + b"\n" + record.payload)
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes were written")
            self._unsynced += 1
            if self.fsync_every and self._unsynced >= self.fsync_every:
                self.flush()
            if self._flusher is not None:
                self._flusher.written()
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that became read-only: the next opening cuts the torn record off
                self._file.truncate(self._end)
                self._file.seek(self._end)
            raise _unwritable(f"item {record.item} could not be written to the journal", self.path, error) from error
        self._end += len(data)


def mend(path: Path) -> str:
    """Make a journal that is damaged one again, of all records that are whole. The damaged file stays beside it, with
    `.damaged` added to its name. Returns what was wrong; empty if nothing was, or if there is no journal."""
    if not path.exists() or path.stat().st_size < len(MAGIC):
        return ""
    try:
        for _ in _frames(path):
            pass
        return ""
    except CheckpointError as error:
        damage = error.given
    bodies = list(salvaged(path.read_bytes()))
    fresh, aside = (path.with_name(path.name + suffix) for suffix in (".mending", ".damaged"))
    try:
        with fresh.open("wb") as file:
            file.write(MAGIC + b"".join(map(_framed, bodies)))
            file.flush()
            os.fsync(file.fileno())
        aside.unlink(missing_ok=True)
        aside.hardlink_to(path)
        fresh.replace(path)
        _flush_directory(path.parent)
    except OSError as error:
        then = f"; then go on with: freerun resume {path.parent}"
        raise _unwritable("the journal is damaged and could not be mended", path, error, then) from error
    return f"{damage}; {len(bodies)} records are whole and were kept, what was in others is made again; see {aside.name}"


def salvaged(data: bytes) -> Iterator[bytes]:
    """The bodies of all whole frames in a damaged journal. Damage inside a body costs that record; damage inside a header costs
    the search for the next frame, too."""
    end = 0
    while end + _FRAME.size <= len(data):
        length, body_crc, header_crc = _FRAME.unpack_from(data, end)
        start = end + _FRAME.size
        if zlib.crc32(data[end : end + 8]) != header_crc or start + length > len(data):
            end += 1
            continue
        body = data[start : start + length]
        if zlib.crc32(body) == body_crc:
            yield body
        end = start + length


def _framed(body: bytes) -> bytes:
    frame = struct.pack("<II", len(body), zlib.crc32(body))
    return frame + struct.pack("<I", zlib.crc32(frame)) + body


def read(path: Path) -> list[Record]:
    """Records of a journal that nobody writes to, oldest first. Raises `CheckpointError` if it is damaged before its end."""
    return [parsed(body) for body, _ in _frames(path)]


def parsed(body: bytes) -> Record:
    """The record in a frame's body. Raises `CheckpointError` for one that is whole and yet no record."""
    head, _, payload = body.partition(b"\n")
    try:
        fields = json.loads(head)
        types = {name: type(fields[name]) for name in ("item", "uid", "oldest", "reason")}
        if types != {"item": int, "uid": str, "oldest": int, "reason": str}:
            raise TypeError(f"fields of types {types}")
        return Record(**fields, payload=payload)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the journal has a record that cannot be read",
            given=f"{type(error).__name__}: {error}",
            expected="what a run of this version wrote",
            todo="resume with the version of the run, or remove the journal: what was finished is then made again",
        ) from error


def _frames(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole frames as (body, offset of the end); stops before a torn one."""
    with path.open("rb") as file:
        size, end = os.fstat(file.fileno()).st_size, len(MAGIC)
        if file.read(end) != MAGIC:
            raise _damage(path, 0, "it does not begin as a journal does")
        while size - end >= _FRAME.size:
            header = file.read(_FRAME.size)
            length, body_crc, header_crc = _FRAME.unpack(header)
            if zlib.crc32(header[:8]) != header_crc:
                if any(header) or _any_byte(file):
                    raise _damage(path, end, "a frame's header is not what was written")
                return
            end += _FRAME.size + length
            if end > size:
                return
            body = file.read(length)
            if zlib.crc32(body) != body_crc:
                if end < size and _any_byte(file):
                    raise _damage(path, end - length, "a record is not what was written, and others follow it")
                return
            yield body, end


def _unwritable(what: str, path: Path, error: OSError, then: str = "") -> CheckpointError:
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    todo = ("make room" if full else "check the path, its permissions and the disk") + then
    return CheckpointError(what, given=f"{path}: {error}", expected="room and permission to write", todo=todo)


def _damage(path: Path, offset: int, what: str) -> CheckpointError:
    return CheckpointError(
        "the journal is damaged",
        given=f"{path}, byte {offset}: {what}",
        expected="a journal, whole but for its end",
        todo="`freerun resume`, which keeps the records that are whole and makes the others again",
    )


def _any_byte(file: BinaryIO) -> bool:
    """Whether anything but zeros follows: a file system may have made a file longer and died before it wrote the bytes."""
    return any(any(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
