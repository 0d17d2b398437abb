"""What a run leaves behind: one directory, written line by line while the run goes on.

    config.json        the resolved config (`config.dump`)
    environment.json   `attempts`: one entry per start or resume with versions, CPU, threads and commit; `because` says how the
                       attempt before it ended, if the run was resumed by itself
    metrics.jsonl      one `StepRecord` a line          evals.jsonl     one `EvalRecord` a line
    events.jsonl       `Event`s, bounded: see below     samples.jsonl   a bounded, even selection of `SampleRecord`s
    pictures/          of a control run: episodes of its policy, before and after
    summary.json       how it ended; absent while the run goes on and after a kill
    run.lock           who is writing; absent when nobody is

A line is written whole by the call that records it, so a killed process loses nothing and tears at most its last line. Numbers
that are not finite are the strings "nan", "inf" and "-inf", so every line is JSON.

Of the events, the older half of those that have a length goes when the file would pass `MAX_EVENT_BYTES`; moments stay.

Resuming at step N keeps the lines up to step N (events: those that had ended when step N ended; evaluations: those of versions
that are not lost) and removes what the lost attempt wrote after it, because the resumed run does that work again. An event
"resumed" says how many lines went. An evaluation that is there already is not recorded a second time.
"""

import enum
import errno
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from freerun.environment import environment, now
from freerun.errors import RunDirectoryError
from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord, evaluation_of
from freerun.runlock import LOCK, RunLock

CONFIG, ENVIRONMENT, SUMMARY = "config.json", "environment.json", "summary.json"
METRICS_LOG, EVENTS_LOG, EVALS_LOG, SAMPLES_LOG = "metrics.jsonl", "events.jsonl", "evals.jsonl", "samples.jsonl"
PICTURES = "pictures"
"""Folder of moving pictures of a policy, one file per full evaluation."""
LOGS = (METRICS_LOG, EVENTS_LOG, EVALS_LOG, SAMPLES_LOG)
MAX_EVENT_BYTES = 64 << 20
"""Some hundred thousand spans."""
TORN = tuple(f".{name}.new" for name in (CONFIG, ENVIRONMENT, SUMMARY, *LOGS))
"""Files whose writing the end of a process may have cut short."""


class Log(NamedTuple):
    """A JSONL file as read back. `damaged` counts lines that are not whole JSON objects: at most the last one, after a kill."""

    rows: list[dict[str, Any]]
    damaged: int


def read_log(path: Path) -> Log:
    """All whole lines of a JSONL file; nothing if there is no such file."""
    if not path.exists():
        return Log([], 0)
    rows, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            damaged += 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return Log(rows, damaged)


def jsonable(value: Any) -> Any:
    """`value` as JSON data: records and mappings become objects, enums their values, non-finite numbers strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(object.__getattribute__(value, f.name)) for f in fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [jsonable(v) for v in value]
    return value


class RunDirectory:
    """A `Sink` that writes the run directory. Make one with `create` or `resume`; it holds the directory's lock until `close`.

    `elapsed` is where the run's clock goes on: 0 for a new run, the end of the resumed step for a resumed one. `evaluations`
    are all of the run's, those before a resume included. `attempt` counts from 1.
    Every method raises `RunDirectoryError` when a write fails (disk full, directory gone). The record stays in memory, is tried
    again by the next write and by `close`, and a partly written line is taken back: the file ends with a whole line.
    """

    def __init__(self, path: Path, lock: RunLock, *, max_sample_bytes: int) -> None:
        self.path, self.elapsed, self.evaluations, self.attempt = path, 0.0, list[Evaluation](), 1
        self._lock, self._last_step, self._outcome, self._closed = lock, dict[str, Any](), ("unfinished", ""), False
        self._metrics, self._evals = _Appender(path / METRICS_LOG), _Appender(path / EVALS_LOG)
        self._events = _Recent(path / EVENTS_LOG, max_bytes=MAX_EVENT_BYTES)
        self._samples = _Thinned(path / SAMPLES_LOG, max_bytes=max_sample_bytes)

    @staticmethod
    def create(path: Path | str, config: Mapping[str, Any], *, max_sample_bytes: int = 16 << 20) -> "RunDirectory":
        """Make the directory of a new run. `config` is the dumped config; samples are thinned evenly to `max_sample_bytes`.

        Raises `RunDirectoryError` if another process is using it, if it already holds a run, if it is not empty, or if it
        cannot be written. A lock left by a dead process is taken over.
        """
        path = Path(path)
        with _writing(path, "be made"):
            path.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in path.iterdir() if p.name not in (LOCK, *TORN))
            given, expected = ", ".join(found[:6]), "a new or empty directory"
            if found and not {CONFIG, ENVIRONMENT} <= set(found):
                raise RunDirectoryError(
                    f"{path} is not empty and not a run directory",
                    given=given,
                    expected=expected,
                    todo="choose another directory",
                )
            with ExitStack() as on_error:
                lock = RunLock(path)
                lock.acquire()
                on_error.callback(lock.release)
                if found:
                    raise RunDirectoryError(
                        f"{path} already holds a run",
                        given=given,
                        expected=expected,
                        todo=f"`freerun resume {path}` to go on with it, or choose another directory",
                    )
                _replace(path / CONFIG, json.dumps(jsonable(config), indent=2))
                _replace(path / ENVIRONMENT, json.dumps({"attempts": [environment()]}, indent=2))
                run = RunDirectory(path, lock, max_sample_bytes=max_sample_bytes)
                on_error.pop_all()
        return run

    @staticmethod
    def resume(
        path: Path | str, step: int, *, anew: bool = False, because: str = "", max_sample_bytes: int = 16 << 20
    ) -> "RunDirectory":
        """Go on with a run whose checkpoint is of `step`: lines of later steps are removed (see the module's docstring).
        `anew` says that there is none, so that the run begins again, and judges its first policy again. `because` says how the
        last attempt ended, if that is known.

        Raises `RunDirectoryError` if `path` is not a run directory or another process is using it.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            given = "no config.json in it" if path.is_dir() else "no such directory"
            raise RunDirectoryError(
                f"{path} is not a run directory",
                given=given,
                expected="a directory made by `freerun run`",
                todo="check the path",
            )

        def upto(row: dict[str, Any]) -> bool:
            return row["step"] <= step and isinstance(row["version"], int) and math.isfinite(row["seconds"])

        then = f"; then go on with: freerun resume {path}"
        with _writing(path, "be resumed", then=then), ExitStack() as on_error:
            lock = RunLock(path)
            lock.acquire()
            on_error.callback(lock.release)
            for name in (SUMMARY, *TORN):
                (path / name).unlink(missing_ok=True)
            attempts = _attempts(path)
            attempt = {**environment(), "because": because}
            _replace(path / ENVIRONMENT, json.dumps({"attempts": [*attempts, attempt]}, indent=2))
            steps = [row for row in read_log(path / METRICS_LOG).rows if _accepted(row, upto)]
            elapsed, version = (float(steps[-1]["seconds"]), steps[-1]["version"]) if steps else (0.0, -1 if anew else 0)
            removed = {
                name: _keep(path / name, rule)
                for name, rule in (
                    (METRICS_LOG, upto),
                    (SAMPLES_LOG, lambda row: row["step"] <= step and row["index"] >= 0),
                    (EVALS_LOG, lambda row: row["step"] <= step and evaluation_of(row).newest <= version),
                    (EVENTS_LOG, lambda row: row["end"] <= elapsed),
                )
            }
            run = RunDirectory(path, lock, max_sample_bytes=max_sample_bytes)
            on_error.pop_all()
        run.elapsed, run.evaluations = elapsed, [evaluation_of(row) for row in read_log(path / EVALS_LOG).rows]
        run._last_step, run.attempt = steps[-1] if steps else {}, len(attempts) + 1
        run.event(
            Event(
                executor="controller",
                what="resumed",
                start=elapsed,
                end=elapsed,
                detail={"step": step, "attempt": run.attempt, "because": because, "removed_lines": removed},
            )
        )
        return run

    def event(self, record: Event) -> None:
        self._events.append(jsonable(record))

    def step(self, record: StepRecord) -> None:
        self._last_step = jsonable(record)
        self._metrics.append(self._last_step)

    def sample(self, record: SampleRecord) -> None:
        self._samples.append(jsonable(record))

    def evaluation(self, record: Evaluation) -> None:
        if any(other.key == record.key for other in self.evaluations):
            return
        self.evaluations.append(record)
        self._evals.append(jsonable(record))

    def status(self, record: Status) -> None:
        """Not kept: `events.jsonl` says the same with its times."""

    def finish(self, outcome: Literal["finished", "interrupted", "failed"], reason: str = "") -> None:
        """Say how the run ended, for the summary that `close` writes. Without it the summary says "unfinished"."""
        self._outcome = (outcome, reason)

    def close(self) -> None:
        """Write the summary and what is still in memory, and give the lock back. Does all of it even if a part fails."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            stack.callback(self._unlock)
            stack.callback(self._write_summary)
            for log in (self._samples, self._evals, self._events, self._metrics):
                stack.callback(log.close)

    def _unlock(self) -> None:
        with _writing(self.path / LOCK, "be removed"):
            self._lock.release()

    def _write_summary(self) -> None:
        outcome, reason = self._outcome
        last = self._last_step
        splits = dict.fromkeys(e.split for e in self.evaluations)
        accuracy = {s: [jsonable(e) for e in self.evaluations if e.split == s] for s in splits}
        summary = {
            "outcome": outcome,
            "reason": reason,
            "attempts": self.attempt,
            "step": last.get("step", 0),
            "version": last.get("version", 0),
            "seconds": last.get("seconds", self.elapsed),
            "ended": now(),
            "heldout": {s: {"first": rows[0], "last": rows[-1]} for s, rows in accuracy.items()},
            "samples": {"seen": self._samples.seen, "one_kept_of": self._samples.stride},
            "metrics": last.get("metrics", {}),
        }
        with _writing(self.path / SUMMARY, "be written"):
            _replace(self.path / SUMMARY, json.dumps(summary, indent=2))


class _Appender:
    """Appends JSON lines to a file, each whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size
        self._pending = b""

    @property
    def size(self) -> int:
        return self._size

    def append(self, row: Mapping[str, Any]) -> None:
        self._pending += json.dumps(row).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            os.close(self._file)

    def _flush(self) -> None:
        with _writing(self.path, "be written", waiting=self._pending.count(b"\n")):
            written = 0
            try:
                while written < len(self._pending):
                    written += os.write(self._file, self._pending[written:])
            except OSError:
                with suppress(OSError):  # a disk that became read-only: readers know that a last line may be torn
                    os.ftruncate(self._file, self._size)
                raise
            self._size, self._pending = self._size + written, b""


class _Recent:
    """An appender of events that forgets the older half of the spans when the file would exceed `max_bytes`."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._max_bytes, self._limit, self._log = max_bytes, max_bytes, _Appender(path)

    def append(self, row: Mapping[str, Any]) -> None:
        self._log.append(row)
        if self._log.size > self._limit:
            self._forget()

    def _forget(self) -> None:
        path = self._log.path
        number, seen = sum(_accepted(row, _is_span) for row in read_log(path).rows), itertools.count()
        with _writing(path, "be shortened"):
            _keep(path, lambda row: not _is_span(row) or next(seen) >= number // 2)
        self._log.close()
        self._log = _Appender(path)
        self._limit = max(self._max_bytes, self._log.size + self._max_bytes // 4)  # moments alone may be as much

    def close(self) -> None:
        self._log.close()


class _Thinned:
    """An appender that keeps every `stride`-th row. When the file would exceed `max_bytes` the stride doubles and every second
    row goes, so what is left spreads evenly over the run. A row carries its place in the count as `index`."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        indices = [row["index"] for row in read_log(path).rows if isinstance(row.get("index"), int)]
        self.seen = indices[-1] + 1 if indices else 0
        self.stride = min((b - a for a, b in itertools.pairwise(indices)), default=1)
        self._max_bytes, self._log = max_bytes, _Appender(path)

    def append(self, row: Mapping[str, Any]) -> None:
        index, self.seen = self.seen, self.seen + 1
        if index % self.stride == 0:
            self._log.append({"index": index, **row})
        while self._log.size > self._max_bytes and self.stride < 2 * self.seen:
            self._thin(2 * self.stride)

    def _thin(self, stride: int) -> None:
        with _writing(self._log.path, "be thinned"):
            _keep(self._log.path, lambda row: row["index"] % stride == 0)  # a row without a number goes
        self._log.close()
        self._log, self.stride = _Appender(self._log.path), stride

    def close(self) -> None:
        self._log.close()


@contextmanager
def _writing(path: Path, what: str, *, waiting: int = 0, then: str = "") -> Iterator[None]:
    """Turns an `OSError` inside into a `RunDirectoryError` about `path`; `waiting` records could not be written. `then` is what
    to do once that is mended."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kept = f"; {waiting} record{'s' * (waiting > 1)} kept in memory" if waiting else ""
        raise RunDirectoryError(
            f"{path} could not {what}",
            given=f"{error.strerror or error}{kept}",
            expected="room and permission to write",
            todo=("make room" if full else "check the path, its permissions and the disk") + then,
        ) from error


def _keep(path: Path, rule: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite a log with the whole rows that `rule` accepts, at once or not at all; returns how many lines went."""
    if not path.exists():
        return 0
    rows, damaged = read_log(path)
    kept = [row for row in rows if _accepted(row, rule)]
    _replace(path, "".join(json.dumps(row) + "\n" for row in kept))
    return len(rows) - len(kept) + damaged


def _is_span(row: Mapping[str, Any]) -> bool:
    return row["end"] > row["start"]


def _accepted(row: dict[str, Any], rule: Callable[[dict[str, Any]], bool]) -> bool:
    """A row without the fields that the rule asks for is damaged, and goes."""
    try:
        return bool(rule(row))
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return False


def _replace(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a full disk, finds the old file or the new one."""
    attempt = path.with_name(f".{path.name}.new")  # see `TORN`
    try:
        attempt.write_text(text, encoding="utf-8")
        os.replace(attempt, path)
    finally:
        attempt.unlink(missing_ok=True)


def _attempts(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        return json.loads((path / ENVIRONMENT).read_text())["attempts"]
    except (FileNotFoundError, ValueError, KeyError):
        return []  # killed before it was written: the resumed attempt is the first that is known
