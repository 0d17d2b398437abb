"""From a resolved config to a finished run: place the executors, wire them, run the controller, end everything.

Used by the command line; a script may call `launch(config, ...)` itself.
"""

import asyncio
import importlib
import importlib.util
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from freerun import config as configs
from freerun import stages
from freerun.actors.generator import GeneratorExecutor
from freerun.checkpoint import JOURNAL, Checkpoints, restore_controller
from freerun.controller import Controller
from freerun.errors import CheckpointError, ConfigError, RunDirectoryError
from freerun.metrics import EvalRecord, Sink
from freerun.models.base import resolve_dtype
from freerun.placement.base import ExecutorSpec, Placement
from freerun.placement.guardian import Guardian
from freerun.placement.inline import InlinePlacement
from freerun.recipes import base as recipes
from freerun.recipes.base import RunConfig
from freerun.rewards.pool import RewarderExecutor
from freerun.store.admission import Admission
from freerun.store.journal import Journal
from freerun.trainer.trainer import TrainerConfig, TrainerExecutor, check
from freerun.weights import shared
from freerun.weights.channel import Subscriber


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `finished` is False when it was interrupted. `step` and `total_steps` say how far it came."""

    finished: bool
    step: int
    total_steps: int
    evaluations: tuple[EvalRecord, ...]


async def launch(
    config: RunConfig,
    run_dir: Path,
    sinks: Sink,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    evaluate_only: int = 0,
    checkpoint_at_end: bool = True,
    began: float = 0.0,
    guardian: Guardian | None = None,
) -> Outcome:
    """Run `config` to its end, writing checkpoints below `run_dir`.

    With `checkpoint`, go on from it; with `evaluate_only` as well, evaluate that many held-out problems on it and return. With
    `resume` and no checkpoint, begin again at step 0 with the finished groups that the run's journal has.
    Everything started here has ended when this returns or raises; if this process is killed, `guardian` sees to it.
    """
    fits_value = config.reference_value is not None
    check(trainer_config(config), config.algorithm, config.control.group_size, config.sampling, fits_value=fits_value)
    task = config.task.build()
    data = stages.Data.of(config, task, begins=checkpoint is None)
    journal = None if evaluate_only or not checkpoint_at_end else Journal(run_dir / JOURNAL, behind=True)
    kind = placement_kind(config.placement.kind)
    placement = await _placement(config, kind, run_dir, guardian)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.records.keep_checkpoints)
    if not evaluate_only:
        checkpoints.clean(checkpoint)
    try:
        handles = await placement.spawn(executors(config, kind, run_dir, guardian))
        names = sorted(n for n in handles if n.startswith("generator"))
        controller = Controller(
            config.control,
            placement=placement,
            generators=[handles[n] for n in names],
            rewarder=handles["rewarder"],
            trainer=handles["trainer"],
            prompts=task.train if data.offline is None else data.offline,
            heldout=task.heldout,
            sampling=config.sampling,
            eval_sampling=replace(config.sampling, temperature=0.0),
            accuracy=task.accuracy,
            sink=sinks,
            seed=config.seed,
            experts=data.experts,
            journal=journal,
            directory=run_dir,
            another=partial(another, config, kind),
            exact=kind == "inline" and config.placement.schedule == "serial",
            save=checkpoints.save if checkpoint_at_end and not evaluate_only else None,
            began=began,
        )
        with _signals(controller):
            if checkpoint is not None:
                await controller.tracker.call(
                    handles["trainer"],
                    "load",
                    str(checkpoint / "trainer"),
                    what="checkpoint",
                    doing=f"loading {checkpoint.name}",
                )
            else:
                await stages.before_training(controller, config, data)
                if controller.stopping:
                    # Half a stage is no place to go on from: nothing is saved, and a resumed run begins anew.
                    return Outcome(False, 0, config.control.steps, ())
            if config.reference_value is not None and data.offline is not None:
                await stages.select(controller, config.reference_value, data.offline, config.seed)
            if not evaluate_only and (checkpoint is not None or resume):
                restore_controller(controller, checkpoint)
            await (controller.evaluate(evaluate_only) if evaluate_only else controller.run())
        return Outcome(not controller.stopping, controller.step, config.control.steps, tuple(controller.evaluator.records))
    finally:
        if journal is not None:
            journal.close()
        await placement.stop()
        # What a killed trainer, of this run or of an earlier one, left in shared memory; the living keep theirs locked.
        shared.sweep()


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


async def _placement(config: RunConfig, kind: str, run_dir: Path, guardian: Guardian | None) -> Placement:
    record = run_dir / "interleaving.jsonl" if config.placement.record else None
    if kind == "inline":
        replay = Path(config.placement.replay) if config.placement.replay else None
        return InlinePlacement(schedule=config.placement.schedule, record=record, replay=replay)
    # Monarch has one log for all runs of a user, which outlives them and grows by some 50 kB a run: keep it to errors.
    os.environ.setdefault("MONARCH_FILE_LOG", "error")
    from freerun.placement.monarch import MonarchPlacement

    return MonarchPlacement(record=record, guardian=guardian, preload=preloaded(config))


def preloaded(config: RunConfig) -> Sequence[str]:
    """Modules that a process is to have imported before executors are forked from it. Raises `ConfigError` if a device is no
    processor."""
    if not config.placement.preload:
        return ()
    devices = {config.generator.device, config.trainer.device}
    if devices != {"cpu"}:
        raise ConfigError(
            "executors on a GPU cannot be forked",
            given=f"devices {', '.join(sorted(devices))}",
            expected="cpu",
            todo="--placement.preload false",
        )
    own = (type(config.task), type(config.model), type(config.algorithm))
    return sorted({kind.__module__ for kind in (GeneratorExecutor, TrainerExecutor, RewarderExecutor, *own)})


def executors(config: RunConfig, kind: str, run_dir: Path, guardian: Guardian | None = None) -> Sequence[ExecutorSpec]:
    """What to spawn: the generators, the rewarder and the trainer, on disjoint cores. `guardian` is told which files they make
    outside the run directory."""
    publisher, subscriber = transports(config, kind, guardian)
    specs = [_generator(config, kind, i, subscriber) for i in range(config.placement.generators)]
    trainer = ExecutorSpec(
        name="trainer",
        factory=TrainerExecutor,
        args=(config.model, config.algorithm, trainer_config(config), publisher, run_dir),
        **_share(config, kind, 0),
    )
    rewarder = ExecutorSpec(name="rewarder", factory=RewarderExecutor, args=(config.task, config.reward), threads=1)
    return [*specs, rewarder, trainer]


def another(config: RunConfig, kind: str, index: int) -> ExecutorSpec:
    """The generator of number `index`, which may be one more than the config has, of a run that goes on."""
    return _generator(config, kind, index, subscriber(config, kind))


def _generator(config: RunConfig, kind: str, index: int, subscriber: Callable[[], Subscriber]) -> ExecutorSpec:
    room = (config.control.max_lag + 1) * config.control.groups * config.control.group_size
    slots = config.generator.slots or room // config.placement.generators
    replayed = config.algorithm.build().routing == "rollout"
    generator = replace(config.generator, slots=slots, routing=config.generator.routing or replayed)
    return ExecutorSpec(
        name=f"generator-{index}" if index or config.placement.generators > 1 else "generator",
        factory=GeneratorExecutor,
        args=(config.model, generator, subscriber),
        **_share(config, kind, index + 1),
    )


def _share(config: RunConfig, kind: str, index: int) -> dict[str, Any]:
    """Cores and threads of the executor that comes at place `index`; the trainer is at 0."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // (config.placement.generators + 1))
    threads = config.placement.threads or (share if kind == "monarch" else len(cores))
    pinned = config.placement.pin and kind != "inline"
    own = cores[index * share : (index + 1) * share] or cores
    return {"cores": tuple(own) if pinned else (), "threads": threads}


def trainer_config(config: RunConfig) -> TrainerConfig:
    """The trainer's section with what the rest of the run decides: the bound on lag, the temperature of sampling, the seed."""
    control = config.control
    bound = Admission(batch=control.groups, max_lag=control.max_lag, window=control.window).lag_bound
    return replace(
        config.trainer,
        max_lag=bound,
        max_age=control.replay_age,
        temperature=config.sampling.temperature,
        seed=config.seed,
    )


def transports(config: RunConfig, kind: str, guardian: Guardian | None = None) -> tuple:
    """Factories of the publisher and of the subscribers for the configured transport."""
    name, readers = _transport(config, kind), subscriber(config, kind)
    kept = resolve_dtype(config.generator.dtype, config.generator.device)
    dtype = str(kept).removeprefix("torch.") if config.weights.dtype == "auto" else config.weights.dtype
    if name != "shared":
        module = importlib.import_module(f"freerun.weights.{name}")
        return module.publisher(dtype=dtype, checksum=config.weights.verify), readers
    run = secrets.token_hex(6)
    if guardian is not None:
        for pattern in shared.patterns(run):
            guardian.clean(pattern)
    return shared.publisher(dtype=dtype, checksum=config.weights.verify, run=run), readers


def subscriber(config: RunConfig, kind: str) -> Callable[[], Subscriber]:
    """Factory of a reader's end of the configured transport."""
    return importlib.import_module(f"freerun.weights.{_transport(config, kind)}").subscriber()


def _transport(config: RunConfig, kind: str) -> str:
    asked = config.weights.transport
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


class _signals:
    """SIGINT and SIGTERM ask the controller to stop after the call in hand; a second one cancels at once."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        if self._controller.stopping and self._task is not None:
            self._task.cancel()
        self._controller.request_stop()

    def __exit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


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


def stored_config(directory: Path) -> tuple[RunConfig, dict[str, Any]]:
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


def refuse_other_config(stored: dict, config: RunConfig) -> None:
    """Raises `CheckpointError` naming every key at which a run directory's config differs from `config`."""
    changed = configs.differences(stored, configs.dump(config))
    if changed:
        raise CheckpointError(
            "this directory was made by another config",
            given="; ".join(changed[:6]),
            expected="the same config",
            todo="resume without overrides, or start a new run",
        )
