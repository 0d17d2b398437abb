"""One attempt at a run, from its directory to its end: records, live view, guardian, and how it ended."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from freerun import config as configs
from freerun.errors import (
    ConfigError,
    DataError,
    DeadlineExceeded,
    ExecutorDied,
    FreerunError,
    RunDirectoryError,
    Stalled,
)
from freerun.metrics import Fanout, Sink
from freerun.recipes.base import RunConfig
from freerun.recipes.control_base import ControlRun
from freerun.rundir import RunDirectory

EXIT_INTERRUPTED = 130
DEATHS = (ExecutorDied, DeadlineExceeded, Stalled)
"""Errors that a resumed run may well be spared."""


def train(
    config: RunConfig | ControlRun,
    recipe: str,
    files: RunDirectory,
    checkpoint: Path | None,
    *,
    plain: bool,
    supervised: bool,
    resume: bool = False,
) -> int:
    """Begin or go on, and leave records, summary and report whatever happens. Returns the exit status; raises what ended the
    run, with the command to go on with, unless it is `supervised` by somebody who does that himself."""
    from freerun.placement.guardian import Guardian
    from freerun.staging import own_temporary_files
    from freerun.watch.terminal import Terminal

    directory = files.path
    console = Console(force_terminal=False if plain else None)
    go_on = f"go on with: freerun resume {directory}"
    last_words = f"error: the controller (process {os.getpid()}) was killed or crashed; {go_on}"
    with Guardian("" if supervised else last_words) as guardian, own_temporary_files(guardian):
        sinks = Fanout([files])
        try:
            view = Terminal(
                recipe,
                run_dir=directory,
                report=directory / "report.html",
                began=files.elapsed,
                earlier=files.evaluations,
                console=console,
            )
            sinks = Fanout([files, *_optional_sinks(config, directory), view])
            job = launcher(config)(
                config,
                directory,
                sinks,
                checkpoint=checkpoint,
                resume=resume,
                began=files.elapsed,
                guardian=guardian,
            )
            outcome = asyncio.run(job)
            files.finish("finished" if outcome.finished else "interrupted")
        except BaseException as error:
            files.finish("failed", f"{type(error).__name__}: {error}")
            if unwritten := _close(sinks, directory):
                console.print(f"and {unwritten.what} ({unwritten.given})", markup=False, highlight=False, soft_wrap=True)
            if not (supervised and isinstance(error, DEATHS)):
                _say_how(error, go_on)
            raise
        if unwritten := _close(sinks, directory):
            _say_how(unwritten, go_on)
            raise unwritten
    if not outcome.finished:
        console.print(f"stopped at step {outcome.step} of {outcome.total_steps}; {go_on}", markup=False, soft_wrap=True)
    return 0 if outcome.finished else EXIT_INTERRUPTED


def _close(sinks: Sink, directory: Path) -> RunDirectoryError | None:
    """Close the records and write the report. What kept a disk from taking them is returned, not raised: it must not stand in
    the place of what ended the run."""
    from freerun.watch.report import write_report

    errors = []
    for leave in (sinks.close, partial(write_report, directory)):
        try:
            leave()
        except RunDirectoryError as error:
            errors.append(error)
    return errors[0] if errors else None


def _say_how(error: BaseException, go_on: str) -> None:
    """Let `error` say how to go on, where that is of use: bad data and a bad config are so every time."""
    if isinstance(error, FreerunError):
        error.todo += "" if isinstance(error, ConfigError | DataError) else f"; then {go_on}"
    elif isinstance(error, Exception):
        error.add_note(go_on)


def refuse(config: RunConfig | ControlRun) -> None:
    """Raises `ConfigError` or `DataError` for a config that cannot work, before anything is written for its run."""
    if isinstance(config, ControlRun):
        from freerun import launch_control

        launch_control.refuse(config)
    else:
        from freerun import launch

        launch.refuse(config)


def launcher(config: RunConfig | ControlRun) -> Callable[..., Coroutine[Any, Any, Any]]:
    """What runs this kind of config; loaded when it is needed."""
    if isinstance(config, ControlRun):
        from freerun.launch_control import launch_control

        return launch_control
    from freerun.launch import launch

    return launch


def _optional_sinks(config: RunConfig | ControlRun, directory: Path) -> list[Sink]:
    sinks: list[Sink] = []
    if config.records.tensorboard:
        from freerun.watch.tensorboard import TensorBoardSink

        sinks.append(TensorBoardSink(directory / "tensorboard"))
    if config.records.wandb:
        from freerun.watch.wandb import WandbSink

        sinks.append(WandbSink(config.records.wandb, directory, configs.dump(config)))
    return sinks
