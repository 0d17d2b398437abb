"""Atomic checkpoints: networks, optimiser, credit state, random states, data cursor, ledger and store become durable together.

A checkpoint is a directory `step-00000042` that appears by one rename, after every byte and its directory were flushed. Its
`manifest.json` lists the SHA-256 of every file and of this list, so a torn or corrupted one is recognised; the newest whole one
is used, and what was passed over is reported. Writing never touches an older checkpoint: a full disk costs the new one only.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freerun.encoding import decode_group, encode_group
from freerun.errors import CheckpointError, ExecutorFailed, FreerunError
from freerun.metrics import EvalRecord
from freerun.program import Program
from freerun.store import journal
from freerun.store.recovery import needed_by
from freerun.types import Example, Group, Prompt

if TYPE_CHECKING:
    from freerun.controller import Controller

JOURNAL, GROUPS, REPLAY = "journal", "groups.journal", "replay.journal"
"""Files of finished groups: of the run, and in a checkpoint those that were stored and those that may be replayed."""


MANIFEST = "manifest.json"
FLUSHES = 8
"""Files that are flushed to disk at the same time."""


class Checkpoints:
    """The checkpoints of one run directory. Keeps the newest `keep`.

    Other names in the directory are `.attempt-*`, left by a process that was killed while it wrote one, and `damaged-*`, those
    that a resume passed over; they are kept until the next one is written.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    async def save(self, program: Program) -> Path:
        """Write one of a program and its trainer, unless it is there. On any failure the attempt is removed, older checkpoints
        stay as they were, and `CheckpointError` says why."""
        final = self.directory / f"step-{program.step:08d}"
        attempt = self.directory / f".attempt-{program.step:08d}-{os.getpid()}"
        if final.exists() and not damage_of(final) and program.is_in(final):
            return final  # the run stopped where it was resumed
        try:
            (attempt / "trainer").mkdir(parents=True)
            await program.tracker.call(
                program.trainer, "save", str(attempt / "trainer"), what="checkpoint", doing="saving a checkpoint"
            )
            await program.write(attempt)
            _seal(attempt)
            if final.exists():
                shutil.rmtree(final)
            attempt.rename(final)
            _flush(self.directory)
            _flush(self.directory.parent)
        except BaseException as error:
            shutil.rmtree(attempt, ignore_errors=True)
            if not isinstance(error, OSError | ExecutorFailed | CheckpointError):
                raise  # the trainer died, say, or the run was interrupted
            kept = [p.name for p in self.all()]
            raise CheckpointError(
                f"the checkpoint of step {program.step} could not be written",
                given=f"{type(error).__name__}: {error.what if isinstance(error, FreerunError) else error}",
                expected=f"room and permission to write in {self.directory}",
                todo=f"make room; still there: {', '.join(kept) or 'none'}",
            ) from error
        for old in [*self.all()[: -self.keep], *self.directory.glob("damaged-*")]:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed now is tried again next time
        program.saved(self.all()[0])
        return final

    def clean(self, resumed: Path | None = None) -> None:
        """What killed processes left goes, and checkpoints newer than the one that is `resumed`, which were passed over, get
        another name. Only for who holds the directory's lock."""
        for attempt in self.directory.glob(".attempt-*"):
            shutil.rmtree(attempt, ignore_errors=True)  # a trainer that its guardian is about to kill may still write
        for passed in [path for path in self.all() if resumed is not None and path.name > resumed.name]:
            aside = passed.with_name(f"damaged-{passed.name.removeprefix('step-')}")
            if aside.exists():
                shutil.rmtree(aside)
            passed.rename(aside)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.directory.glob("step-*") if p.is_dir())

    def newest_whole(self) -> tuple[Path, list[str]]:
        """The newest checkpoint whose checksums hold, and why newer ones were passed over. Raises `CheckpointError` if none
        does."""
        passed: list[str] = []
        for path in reversed(self.all()):
            damage = damage_of(path)
            if not damage:
                return path, passed
            passed.append(f"{path.name}: {damage}")
        raise CheckpointError(
            "no usable checkpoint",
            given="; ".join(passed) or f"no checkpoint in {self.directory}",
            expected="at least one whole checkpoint",
            todo="start the run anew with `freerun run`",
        )


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint; empty if every file is there with the bytes that were written."""
    name = MANIFEST
    try:
        written = (path / MANIFEST).read_bytes()
        files = dict(json.loads(written)["files"])
        if _manifest(files) != written:
            return f"{MANIFEST} is not what was written"
        for name, digest in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"{name} is no name of a file in it"
            if not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{name} cannot be read ({type(error).__name__}: {error})"
    return ""


def write_controller(directory: Path, controller: "Controller") -> None:
    """The state of a controller of language: numbers, and groups."""
    (directory / "controller.json").write_text(json.dumps(controller_state(controller)))
    write_groups(directory / GROUPS, controller.intake.groups)
    write_groups(directory / REPLAY, controller.replay.groups if controller.replay is not None else {})


def controller_state(controller: "Controller") -> dict[str, Any]:
    """Everything the controller must know to go on but its groups, JSON-able. Prompts are not in it: the run draws them in an
    order that it can repeat."""
    return {
        "step": controller.step,
        "admission": controller.intake.admission.state(),
        "replay": controller.replay.state() if controller.replay is not None else None,
        "evaluations": [dataclasses.asdict(e) for e in controller.evaluator.records],
        "evaluation": controller.evaluator.under_way,
    }


def write_groups(path: Path, groups: Mapping[int, Group | Example]) -> None:
    """Groups in the journal's format, by key. Examples are not written: they are in the data set."""
    file = journal.Journal(path, fsync_every=0)
    for key, group in groups.items():
        if isinstance(group, Group):
            file.finished(key, group.prompt.uid, group.item, encode_group(group))
    file.close()


def restore_controller(controller: "Controller", checkpoint: Path | None) -> None:
    """Put a fresh controller where the saved one was, and where its journal says that it came after that: finished groups are
    in the store again, unfinished items are ordered again. Without a checkpoint it begins at step 0 with what the journal
    has; an exact one without that. Raises `CheckpointError` for a checkpoint that is whole and yet none of this run."""
    finished = None if controller.exact else controller.intake.journal
    records = list(finished.records()) if finished is not None else []
    if checkpoint is None:
        controller.intake.restore(controller.intake.admission.state(), (), records)
        return
    with fitting(checkpoint):
        _restore(controller, checkpoint, json.loads((checkpoint / "controller.json").read_text()), records)


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Raises `CheckpointError` for what a state that does not fit trips over in the block."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the controller's state in {checkpoint.name} does not fit this run",
            given=f"{type(error).__name__}: {error}",
            expected="what a run of this version and config wrote",
            todo="resume with the version of the run",
        ) from error


def _restore(controller: "Controller", checkpoint: Path, state: Mapping[str, Any], records: Sequence[journal.Record]) -> None:
    controller.step = state["step"]
    controller.evaluator.records = [EvalRecord(**e) for e in state["evaluations"]]
    if state["evaluation"] is not None:
        controller.evaluator.begin(*state["evaluation"])
    controller.intake.restore(state["admission"], journal.read(checkpoint / GROUPS), records)
    controller.intake.admission.audit()
    if controller.replay is not None and state["replay"] is not None:
        prompts, kept = controller.intake.prompts, journal.read(checkpoint / REPLAY)
        groups = {r.item: decode_group(r.payload, r.oldest, p) for r in kept if isinstance(p := prompts.at(r.oldest), Prompt)}
        controller.replay.restore(state["replay"], groups)


def needed_after(oldest: Path) -> Callable[[int], bool] | None:
    """Whether a resume from the checkpoint `oldest`, or from a later one, could ask the journal for an item; None if `oldest`
    cannot say."""
    try:
        return needed_by(json.loads((oldest / "controller.json").read_text())["admission"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(directory: Path) -> None:
    """Write the manifest and flush every file, so that the rename that follows publishes only durable bytes."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    manifest = directory / MANIFEST
    manifest.write_bytes(_manifest({str(p.relative_to(directory)): _digest(p) for p in files}))
    with ThreadPoolExecutor(FLUSHES) as pool:  # side by side: most of a flush is waiting for the file system's own journal
        list(pool.map(_flush, [*files, manifest, *(p for p in directory.rglob("*") if p.is_dir()), directory]))


def _manifest(files: Mapping[str, str]) -> bytes:
    """The one way to write down the digests of `files`: a byte that is anything else is damage."""
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=1).encode()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
