"""What the launchers of language and of control share: where executors run, how weights travel, how a run is interrupted."""

import asyncio
import importlib
import importlib.util
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freerun import config as configs
from freerun.errors import CheckpointError, ConfigError, RunDirectoryError
from freerun.metrics import Evaluation
from freerun.placement.base import Placement
from freerun.placement.guardian import Guardian
from freerun.placement.inline import InlinePlacement
from freerun.program import Program
from freerun.recipes import base as recipes
from freerun.recipes.base import PlacementConfig, RunConfig, WeightsConfig
from freerun.recipes.control_base import ControlRun
from freerun.weights import shared
from freerun.weights.channel import Publisher, Subscriber


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `finished` is False when it was interrupted. `step` and `total_steps` say how far it came."""

    finished: bool
    step: int
    total_steps: int
    evaluations: tuple[Evaluation, ...]


@contextmanager
def own_temporary_files(guardian: Guardian) -> Iterator[None]:
    """While the block runs, temporary files of this process and of those that it starts, sockets included, go into a folder
    that does not outlive it. Once in the life of a process: libraries go on using what they found there."""
    before, known = os.environ.get("TMPDIR"), tempfile.tempdir
    folder = tempfile.mkdtemp(prefix="freerun-")
    guardian.own(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = known
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def placement_kind(asked: str) -> str:
    """`auto` resolved. Raises `ConfigError` if Monarch was asked for and is not installed."""
    installed = importlib.util.find_spec("monarch") is not None
    if asked == "monarch" and not installed:
        raise ConfigError(
            "placement 'monarch' needs the package torchmonarch",
            given="not installed",
            expected="torchmonarch",
            todo="pip install 'freerun[monarch]', or --placement.kind inline",
        )
    return ("monarch" if installed else "inline") if asked == "auto" else asked


async def open_placement(
    config: PlacementConfig, kind: str, run_dir: Path, guardian: Guardian | None = None, *, preload: Sequence[str] = ()
) -> Placement:
    """The placement that `kind` names, which `placement_kind` gave. `guardian` looks after the processes that it starts;
    `preload` are the modules that they find imported, see `preloaded`."""
    record = run_dir / "interleaving.jsonl" if config.record else None
    if kind == "inline":
        replay = Path(config.replay) if config.replay else None
        return InlinePlacement(schedule=config.schedule, record=record, replay=replay)
    # Monarch has one log for all runs of a user, which outlives them and grows by some 50 kB a run: keep it to errors.
    os.environ.setdefault("MONARCH_FILE_LOG", "error")
    from freerun.placement.monarch import MonarchPlacement

    return MonarchPlacement(record=record, guardian=guardian, preload=preload)


def preloaded(config: PlacementConfig, devices: Collection[str], classes: Iterable[type]) -> Sequence[str]:
    """Modules of these classes, if a process is to have imported them before executors are forked from it. Raises `ConfigError`
    if a device is no processor."""
    if not config.preload:
        return ()
    if set(devices) != {"cpu"}:
        raise ConfigError(
            "executors on a GPU cannot be forked",
            given=f"devices {', '.join(sorted(set(devices)))}",
            expected="cpu",
            todo="--placement.preload false",
        )
    return sorted({kind.__module__ for kind in classes})


def transports(
    config: WeightsConfig, kind: str, kept: str, guardian: Guardian | None = None, device: str = "cpu"
) -> tuple[Callable[[], Publisher], Callable[[], Subscriber]]:
    """Factories of the publisher and of the subscribers for the configured transport; `kept` is the type that readers keep,
    `device` where. `guardian` is told which files the publisher makes."""
    name, readers = _transport(config, kind), subscriber(config, kind, device)
    dtype = kept if config.dtype == "auto" else config.dtype
    if name != "shared":
        return importlib.import_module(f"freerun.weights.{name}").publisher(dtype=dtype, checksum=config.verify), readers
    run = secrets.token_hex(6)
    if guardian is not None:
        for pattern in shared.patterns(run):
            guardian.clean(pattern)
    return shared.publisher(dtype=dtype, checksum=config.verify, run=run), readers


def subscriber(config: WeightsConfig, kind: str, device: str = "cpu") -> Callable[[], Subscriber]:
    """Factory of a reader's end of the configured transport, for a reader that keeps weights on `device`."""
    name = _transport(config, kind)
    if name == "shared":
        return shared.subscriber(device=device)
    return importlib.import_module(f"freerun.weights.{name}").subscriber()


def _transport(config: WeightsConfig, kind: str) -> str:
    asked = config.transport
    name = ("inprocess" if kind == "inline" else "shared") if asked == "auto" else asked
    if name == "inprocess" and kind != "inline":
        raise ConfigError(
            "weights.transport 'inprocess' cannot cross processes",
            given=f"placement {kind}",
            expected="shared or monarch",
            todo="--weights.transport auto",
        )
    if name == "monarch" and kind != "monarch":
        raise ConfigError(
            "weights.transport 'monarch' needs executors under Monarch",
            given=f"placement {kind}",
            expected="placement monarch",
            todo="--placement.kind monarch, or --weights.transport auto",
        )
    return name


@dataclass(frozen=True, slots=True)
class Cores:
    """Disjoint shares of the allowed cores for `num` executors; no pinning where all are in one process."""

    num: int
    pin: bool

    @property
    def share(self) -> int:
        return max(1, len(os.sched_getaffinity(0)) // self.num)

    def of(self, index: int) -> tuple[int, ...]:
        """The cores of one executor; all of them if there are too few."""
        if not self.pin:
            return ()
        cores = sorted(os.sched_getaffinity(0))
        return tuple(cores[index * self.share : (index + 1) * self.share] or cores)


class Signals:
    """SIGINT and SIGTERM ask a program to stop after the call in hand; a second one cancels at once."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        if self._program.stopping and self._task is not None:
            self._task.cancel()
        self._program.request_stop()

    def __exit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def stored_config(directory: Path) -> tuple[RunConfig | ControlRun, dict[str, Any]]:
    """The config of an existing run directory, rebuilt from its recipe and overrides, and the stored record."""
    path = directory / "config.json"
    if not path.is_file():
        raise RunDirectoryError(
            "not a run directory",
            given=directory,
            expected="a directory with config.json, made by `freerun run`",
            todo="check the path",
        )
    try:
        stored = json.loads(path.read_text())
        recipe, changes = stored["recipe"], {str(key): str(value) for key, value in stored["overrides"].items()}
        if not isinstance(recipe, str) or not isinstance(stored["config"], dict):
            raise TypeError("a recipe's name, and a config")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunDirectoryError(
            "the config of this run cannot be read",
            given=f"{path}: {type(error).__name__}: {error}",
            expected="config.json as `freerun run` wrote it",
            todo="restore the file; the checkpoints beside it are not touched",
        ) from error
    return configs.override(recipes.load(recipe).recipe(), changes), stored


def refuse_other_config(stored: dict[str, Any], config: Any) -> None:
    """Raises `CheckpointError` naming every key at which a run directory's config differs from `config`."""
    changed = configs.differences(stored, configs.dump(config))
    if changed:
        raise CheckpointError(
            "this directory was made by another config",
            given="; ".join(changed[:6]),
            expected="the same config",
            todo="resume without overrides, or start a new run",
        )
