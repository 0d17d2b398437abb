"""A control run on a simulated clock: the real actors and the real trainer, whose calls take stated times.

What is learned is what a run on a machine with these times would learn, and the seconds at which it was learned are those of
that machine, whoever else computes here. So schedules can be compared at any speed of the simulator.

Shapes: T steps of a chunk, N environments.
"""

import asyncio
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from freerun.actors.collector import Collector, CollectReport
from freerun.clients import Beat, Client, Server
from freerun.env_controller import EnvController
from freerun.launch_control import BEAT, executors, supply_of
from freerun.metrics import Evaluation, Fanout, TrialRecord
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement
from freerun.plan.simulated import Clock, Constant, Distribution, VirtualClock
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Plan
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ReplayConfig
from freerun.trainer.reports import StepReport
from freerun.transitions import Order
from freerun.types import Sum, WeightsRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTimes:
    """What collecting and learning cost, in seconds."""

    step: Distribution = field(default_factory=lambda: Constant(0.02))
    """A step of an environment. Those of one actor are stepped at the same time, and the slowest one counts."""
    act: float = 0.0005
    """Choosing the actions of a step, for all environments of an actor."""
    update: float = 0.005
    """A gradient update."""
    publish: float = 0.001
    """Publishing a version."""


class TimedCollector(Collector):
    """A collector whose steps take stated times."""

    def __init__(self, *args: Any, times: ControlTimes, clock: Clock, index: int, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, index=index, seed=seed, **kwargs)
        self._times, self._clock = times, clock
        self._chance = random.Random(f"{seed}/{index}")

    def collect(self, order: Order, ref: WeightsRef | None) -> CollectReport:
        report = super().collect(order, ref)
        steps, envs = report.chunk.columns["reward"].shape
        for _ in range(steps):
            self._clock.spend(self._times.act + max(self._times.step.draw(self._chance) for _ in range(envs)))
        return report


class TimedTrainer(ControlTrainer):
    """A trainer whose updates take stated times."""

    def __init__(self, *args: Any, times: ControlTimes, clock: Clock) -> None:
        super().__init__(*args)
        self._times, self._clock = times, clock

    def finish_step(self, keep: Iterable[int] = (), plan: Plan | None = None) -> StepReport:
        report = super().finish_step(keep, plan)
        updates = report.metrics["updates"]
        assert isinstance(updates, Sum), "updates are counted"
        self._clock.spend(self._times.publish + updates.value * self._times.update)
        return report


class TimedClient(Client):
    """A client whose work takes exactly its seconds."""

    def __init__(self, *args: Any, clock: Clock, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock

    def _wait_out(self, began: float) -> None:
        self._clock.spend(self._seconds)


class TimedBeat:
    """As `Beat`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wait(self, seconds: float) -> None:
        self._clock.spend(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What came of a run: its evaluations, at simulated `seconds`; updates of the trainer, and environment steps."""

    trials: tuple[TrialRecord, ...]
    seconds: float
    updates: int
    taken: int

    def first(self, reached: Callable[[TrialRecord], bool]) -> TrialRecord | None:
        """The first evaluation of which `reached` is true."""
        return next((trial for trial in self.trials if reached(trial)), None)


def simulate(config: ControlRun, times: ControlTimes, *, until: Callable[[TrialRecord], bool] | None = None) -> Simulated:
    """Run `config` with these times to its end, or until an evaluation of which `until` is true. Nothing is kept."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_simulate(config, times, until or _never, Path(directory)))


def _never(trial: TrialRecord) -> bool:
    return False


async def _simulate(
    config: ControlRun, times: ControlTimes, until: Callable[[TrialRecord], bool], directory: Path
) -> Simulated:
    env = config.env.build()
    spaces = env.spaces
    env.close()
    clock = VirtualClock()
    specs = [_timed(spec, times, clock) for spec in executors(config, spaces, "inline", directory)]
    placement = InlinePlacement(schedule="virtual", duration=clock.taken)
    ending = _Ending(until)
    try:
        handles = await placement.spawn(specs)
        replay = [source.capacity for source in config.sources if isinstance(source, ReplayConfig)]
        program = ending.program = EnvController(
            config.control,
            placement=placement,
            actors=[handles[name] for name in sorted(handles, key=lambda n: (len(n), n)) if name.startswith("actor")],
            judge=handles["judge"],
            trainer=handles["trainer"],
            envs=config.actor.envs,
            capacity=replay[0] if replay else 1,
            rollouts=config.algorithm.build().consumes == "rollout",
            supply=supply_of(config, placement.now),
            beat=handles.get(BEAT),
            sink=ending,
            seed=config.seed,
            clock=placement.now,
        )
        await program.run()
    finally:
        await placement.stop()
    taken = program.collection.taken
    return Simulated(trials=tuple(program.trials), seconds=placement.now(), updates=program.updates, taken=taken)


def _timed(spec: ExecutorSpec, times: ControlTimes, clock: Clock) -> ExecutorSpec:
    if spec.name == "judge" or spec.factory is Server:
        # Judging costs a run no time, since it goes on beside it; adding up costs hardly any.
        return spec
    if spec.factory is Client or spec.factory is Beat:
        factory = TimedClient if spec.factory is Client else TimedBeat
        return replace(spec, factory=factory, kwargs={**spec.kwargs, "clock": clock})
    timed = TimedTrainer if spec.factory is ControlTrainer else TimedCollector
    return replace(spec, factory=timed, kwargs={**spec.kwargs, "times": times, "clock": clock})


class _Ending(Fanout):
    """Listens to evaluations, and asks the program to stop at the first one that is wanted."""

    def __init__(self, until: Callable[[TrialRecord], bool]) -> None:
        super().__init__(())
        self._until = until
        self.program: EnvController | None = None

    def evaluation(self, record: Evaluation) -> None:
        if isinstance(record, TrialRecord) and self._until(record) and self.program is not None:
            self.program.request_stop()
