"""From the resolved config of a control run to its end: place the executors, wire them, run the program, end everything."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from freerun.actors.collector import Collector
from freerun.checkpoint import Checkpoints
from freerun.clients import Beat, Client, Server
from freerun.datasets.grades import Grade
from freerun.env_controller import EnvController
from freerun.errors import ConfigError
from freerun.federation import Rounded
from freerun.metrics import Sink
from freerun.placement.base import ExecutorSpec
from freerun.placement.guardian import Guardian
from freerun.recipes.control_base import ControlRun, Federation
from freerun.rundir import PICTURES
from freerun.staging import Cores, Outcome, Signals, open_placement, placement_kind, preloaded, transports
from freerun.store.admission import Admission
from freerun.store.rounds import Interval
from freerun.tasks.grades import make, missing
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig
from freerun.transitions import Spaces
from freerun.weights import shared

BEAT = "beat"
"""Name of the executor that waits, where a round ends by time."""


def refuse(config: ControlRun) -> Spaces:
    """The spaces of the run's environments. Raises `ConfigError` for a config that cannot work, as far as that is seen without
    writing anything."""
    env = config.env.build()
    spaces = env.spaces
    env.close()
    algorithm = config.algorithm.build()
    algorithm.check(spaces)
    kind = placement_kind(config.placement.kind)
    preload(config)
    executors(config, spaces, kind, Path())
    stored = [source for source in config.sources if isinstance(source, ReplayConfig)]
    acting = any(phase.env_steps for phase in config.control.phases)
    if acting and not stored and algorithm.consumes != "rollout" and config.federation is None:
        raise ConfigError(
            "actors collect, and the run has no storage for it",
            given=[source.name for source in config.sources],
            expected="a ReplayConfig among the sources",
            todo="add one to `sources` in the recipe",
        )
    if not config.sources and not acting:
        raise ConfigError("a phase has nothing to train on", given="no source", expected="one", todo="correct the recipe")
    return spaces


def preload(config: ControlRun) -> Sequence[str]:
    """Modules that the executors find imported, see `staging.preloaded`."""
    classes = (Collector, ControlTrainer, Client, type(config.env), type(config.algorithm))
    return preloaded(config.placement, {config.trainer.device}, classes)


async def launch_control(
    config: ControlRun,
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
    """Run `config` to its end, writing checkpoints and pictures below `run_dir`.

    With `checkpoint`, go on from it; with `evaluate_only` as well, play that many episodes with it and return. A `resume`
    without a checkpoint begins again. Everything started here has ended when this returns or raises; if this process is killed,
    `guardian` sees to it.
    """
    spaces, algorithm = refuse(config), config.algorithm.build()
    for name in missing([s.data for s in config.sources if isinstance(s, DatasetConfig) and isinstance(s.data, Grade)]):
        make(name)
    kind = placement_kind(config.placement.kind)
    placement = await open_placement(config.placement, kind, run_dir, guardian, preload=preload(config))
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.records.keep_checkpoints)
    saves = checkpoint_at_end and not evaluate_only
    if not evaluate_only:
        checkpoints.clean(checkpoint)
    try:
        handles = await placement.spawn(executors(config, spaces, kind, run_dir, guardian))
        scores = config.scores or _scores(config)
        capacity = [source.capacity for source in config.sources if isinstance(source, ReplayConfig)]
        program = EnvController(
            config.control,
            placement=placement,
            actors=[handles[name] for name in sorted(handles, key=lambda n: (len(n), n)) if name.startswith("actor")],
            judge=handles["judge"],
            trainer=handles["trainer"],
            envs=config.actor.envs,
            capacity=capacity[0] if capacity else 1,
            rollouts=algorithm.consumes == "rollout",
            supply=supply_of(config, time.monotonic),
            beat=handles.get(BEAT),
            sink=sinks,
            seed=config.seed,
            scores=scores,
            pictures=run_dir / PICTURES if config.actor.picture_frames else None,
            save=checkpoints.save if saves else None,
            directory=run_dir,
            began=began,
        )
        with Signals(program):
            if checkpoint is not None:
                path, doing = str(checkpoint / "trainer"), f"loading {checkpoint.name}"
                await program.tracker.call(handles["trainer"], "load", path, what="checkpoint", doing=doing)
                if not evaluate_only:
                    await program.restore(checkpoint)
            await (program.evaluate(evaluate_only) if evaluate_only else program.run())
        return Outcome(not program.stopping, program.step, program.total_steps, tuple(program.trials))
    finally:
        await placement.stop()
        # What a killed trainer, of this run or of an earlier one, left in shared memory; the living keep theirs locked.
        shared.sweep()


def supply_of(config: ControlRun, now: Callable[[], float]) -> Rounded | None:
    """What decides which clients' work makes a step, by the clock `now`; None where actors only collect."""
    federation = config.federation
    return Rounded(federation.scheme, len(federation.clients), now) if federation is not None else None


def executors(
    config: ControlRun, spaces: Spaces, kind: str, run_dir: Path, guardian: Guardian | None = None
) -> Sequence[ExecutorSpec]:
    """What to spawn: the actors, the one that judges, and the trainer, on disjoint cores. `guardian` is told which files they
    make outside the run directory."""
    if config.federation is not None:
        return _federated(config, config.federation, spaces, kind, run_dir, guardian)
    cores = Cores(config.actors + 1, pin=config.placement.pin and kind != "inline")
    threads = config.placement.threads or (cores.share if kind == "monarch" else len(os.sched_getaffinity(0)))
    publisher, subscriber = transports(config.weights, kind, "float32", guardian)
    normalise = config.trainer.observations != "raw"
    collecting = sum(phase.env_steps for phase in config.control.phases) > 0
    actors = [
        ExecutorSpec(
            name=f"actor-{i}" if config.actors > 1 else "actor",
            factory=Collector,
            args=(config.env, config.actor, config.algorithm, subscriber),
            kwargs={"index": i, "seed": config.seed, "normalise": normalise},
            cores=cores.of(i + 1),
        )
        for i in range(config.actors if collecting else 0)
    ]
    judge = ExecutorSpec(
        name="judge",
        factory=Collector,
        args=(config.judge_env or config.env, replace(config.actor, delay_median=0.0), config.algorithm, subscriber),
        kwargs={"index": config.actors, "seed": config.seed, "normalise": normalise},
        cores=cores.of(config.actors),
    )
    phases, sources = config.control.phases, config.sources
    trainer = ExecutorSpec(
        name="trainer",
        factory=ControlTrainer,
        args=(config.algorithm, spaces, trainer_config(config), phases, sources, publisher, run_dir),
        cores=cores.of(0),
        threads=threads,
    )
    return [*actors, judge, trainer]


def _federated(
    config: ControlRun, federation: Federation, spaces: Spaces, kind: str, run_dir: Path, guardian: Guardian | None
) -> Sequence[ExecutorSpec]:
    """The executors of a federation. Raises `ConfigError` for what does not go together with one."""
    phases = config.control.phases
    if len(phases) != 1 or not phases[0].env_steps or config.trainer.observations != "raw" or config.control.chunks != 1:
        raise ConfigError(
            "this run cannot be federated",
            given=f"{len(phases)} phases, observations {config.trainer.observations}, {config.control.chunks} chunks per step",
            expected="one phase with actors, raw observations, and one chunk per piece of work",
            todo="correct the recipe",
        )
    num = len(federation.clients)
    cores = Cores(num + 1, pin=config.placement.pin and kind != "inline")
    publisher, subscriber = transports(config.weights, kind, "float32", guardian)
    trainer = trainer_config(config)
    clients = [
        ExecutorSpec(
            name=f"actor-{i}",
            factory=Client,
            args=(federation, config.actor, config.algorithm, subscriber),
            kwargs={"index": i, "seed": config.seed, "trainer": trainer, "phase": phases[0], "sources": config.sources},
            cores=cores.of(i + 1),
        )
        for i in range(num)
    ]
    judge = ExecutorSpec(
        name="judge",
        factory=Collector,
        args=(config.judge_env or config.env, replace(config.actor, delay_median=0.0), config.algorithm, subscriber),
        kwargs={"index": num, "seed": config.seed},
        cores=cores.of(num),
    )
    server = ExecutorSpec(
        name="trainer",
        factory=Server,
        args=(federation, config.algorithm, spaces, trainer, phases, (), publisher, run_dir),
        cores=cores.of(0),
    )
    beat = [ExecutorSpec(name=BEAT, factory=Beat)] if isinstance(federation.scheme, Interval) else []
    return [*clients, judge, server, *beat]


def trainer_config(config: ControlRun) -> ControlTrainerConfig:
    """The trainer's section with what the rest of the run decides: the bounds on lag and age, the seed."""
    control = config.control
    bound = Admission(batch=control.chunks, max_lag=control.max_lag, window=control.window).lag_bound
    return replace(config.trainer, max_lag=bound, max_age=control.max_age, seed=config.seed)


def _scores(config: ControlRun) -> tuple[float, float] | None:
    """The reference returns that the first self-made data set knows."""
    data = [s.data for s in config.sources if isinstance(s, DatasetConfig) and isinstance(s.data, Grade)]
    return data[0].build().scores if data else None
