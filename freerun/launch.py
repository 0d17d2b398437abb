"""From a resolved config to a finished run: place the executors, wire them, run the controller, end everything.

Used by the command line; a script may call `launch(config, ...)` itself.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from freerun import stages
from freerun.actors.generator import GeneratorExecutor
from freerun.checkpoint import JOURNAL, Checkpoints, restore_controller
from freerun.controller import Controller
from freerun.metrics import Sink
from freerun.models.base import resolve_dtype
from freerun.placement.base import ExecutorSpec
from freerun.placement.guardian import Guardian
from freerun.recipes.base import RunConfig
from freerun.rewards.pool import RewarderExecutor
from freerun.staging import (
    Cores,
    Outcome,
    Signals,
    open_placement,
    placement_kind,
    preloaded,
    refuse_other_config,
    subscriber,
    transports,
)
from freerun.store.admission import Admission
from freerun.store.journal import Journal
from freerun.trainer.trainer import TrainerConfig, TrainerExecutor, check
from freerun.weights import shared
from freerun.weights.channel import Subscriber

__all__ = ["Outcome", "launch", "refuse_other_config"]


def refuse(config: RunConfig) -> None:
    """Raises `ConfigError` or `DataError` for a config that cannot work, as far as that is seen without writing anything."""
    fits_value = config.reference_value is not None
    check(trainer_config(config), config.algorithm, config.control.group_size, config.sampling, fits_value=fits_value)
    executors(config, placement_kind(config.placement.kind), Path())
    preload(config)
    config.task.build()


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
    refuse(config)
    task = config.task.build()
    data = stages.Data.of(config, task, begins=checkpoint is None)
    journal = None if evaluate_only or not checkpoint_at_end else Journal(run_dir / JOURNAL, behind=True)
    kind = placement_kind(config.placement.kind)
    placement = await open_placement(config.placement, kind, run_dir, guardian, preload=preload(config))
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
        with Signals(controller):
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


def preload(config: RunConfig) -> Sequence[str]:
    """Modules that the executors find imported, see `staging.preloaded`."""
    own = (type(config.task), type(config.model), type(config.algorithm))
    classes = (GeneratorExecutor, TrainerExecutor, RewarderExecutor, *own)
    return preloaded(config.placement, {config.generator.device, config.trainer.device}, classes)


def executors(config: RunConfig, kind: str, run_dir: Path, guardian: Guardian | None = None) -> Sequence[ExecutorSpec]:
    """What to spawn: the generators, the rewarder and the trainer, on disjoint cores. `guardian` is told which files they make
    outside the run directory."""
    kept = str(resolve_dtype(config.generator.dtype, config.generator.device)).removeprefix("torch.")
    publisher, readers = transports(config.weights, kind, kept, guardian, config.generator.device)
    specs = [_generator(config, kind, i, readers) for i in range(config.placement.generators)]
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
    return _generator(config, kind, index, subscriber(config.weights, kind, config.generator.device))


def _generator(config: RunConfig, kind: str, index: int, reader: Callable[[], Subscriber]) -> ExecutorSpec:
    room = (config.control.max_lag + 1) * config.control.groups * config.control.group_size
    slots = config.generator.slots or room // config.placement.generators
    replayed = config.algorithm.build().routing == "rollout"
    generator = replace(config.generator, slots=slots, routing=config.generator.routing or replayed)
    return ExecutorSpec(
        name=f"generator-{index}" if index or config.placement.generators > 1 else "generator",
        factory=GeneratorExecutor,
        args=(config.model, generator, reader),
        **_share(config, kind, index + 1),
    )


def _share(config: RunConfig, kind: str, index: int) -> dict[str, Any]:
    """Cores and threads of the executor that comes at place `index`; the trainer is at 0."""
    cores = Cores(config.placement.generators + 1, pin=config.placement.pin and kind != "inline")
    threads = config.placement.threads or (cores.share if kind == "monarch" else len(os.sched_getaffinity(0)))
    return {"cores": cores.of(index), "threads": threads}


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
