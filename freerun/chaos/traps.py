"""Traps: functions of a run that, when the harness has ordered so, do something terrible before or after they do their work.

The harness writes an order into the directory that the environment variable `DIRECTORY` names. The first process of the right
role to pass the moment of the order so many times takes it, writes down when, and carries it out. Without an order a trap costs
one look for a file.
"""

import asyncio
import errno
import functools
import importlib
import inspect
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freerun.rewards.pool import RewardFunction, Scoring, ScoringConfig
from freerun.types import RewardResult

DIRECTORY = "FREERUN_CHAOS"
ORDER = "order.json"
CLOCK = time.monotonic
"""The same for all processes of a host."""

FLOOD = 1 << 20
"""Characters of a reward that says too much."""

POINTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("generator", "reading weights"): ("freerun.weights.shared:SharedSubscriber.adopt",),
    ("generator", "generation"): ("freerun.actors.generator:GeneratorExecutor.advance",),
    ("generator", "start"): ("freerun.actors.generator:GeneratorExecutor.__init__",),
    ("generator", "shutdown"): ("freerun.actors.generator:GeneratorExecutor.close",),
    ("rewarder", "scoring"): ("freerun.rewards.pool:RewarderExecutor.score",),
    ("rewarder", "start"): ("freerun.rewards.pool:RewarderExecutor.__init__",),
    ("rewarder", "shutdown"): ("freerun.rewards.pool:RewarderExecutor.close",),
    ("trainer", "publication"): ("freerun.weights.shared:SharedPublisher.publish", "freerun.weights.shared:fill"),
    ("trainer", "checkpoint"): ("freerun.trainer.state:save_optimizer", "freerun.trainer.state:save_values"),
    ("trainer", "update"): (
        "freerun.trainer.trainer:TrainerExecutor.accumulate",
        "freerun.trainer.learner:Learner.step",
        "freerun.trainer.trainer:TrainerExecutor.finish_step",
    ),
    ("trainer", "start"): (
        "freerun.trainer.trainer:TrainerExecutor.__init__",
        "freerun.trainer.trainer:TrainerExecutor.load",
        "freerun.trainer.trainer:TrainerExecutor.start",
    ),
    ("trainer", "shutdown"): ("freerun.trainer.trainer:TrainerExecutor.close",),
    ("controller", "admission"): ("freerun.store.admission:Admission.admit", "freerun.store.admission:Admission.begin"),
    ("controller", "journal"): ("freerun.store.journal:Journal._append", "freerun.store.journal:Journal.flush"),
    ("controller", "checkpoint"): (
        "freerun.checkpoint:write_groups",
        "freerun.checkpoint:_seal",
        "freerun.checkpoint:_flush",
        "freerun.controller:needed_after",
    ),
    ("controller", "compaction"): ("freerun.store.journal:Journal.compact", "freerun.store.journal:_flush_directory"),
    ("controller", "publication"): ("freerun.intake:Intake.trained", "freerun.intake:Intake.published"),
    ("controller", "records"): ("freerun.rundir:_Appender.append",),
    ("controller", "healing"): ("freerun.intake:Intake.heal",),
    ("controller", "shutdown"): ("freerun.placement.monarch:MonarchPlacement.stop",),
    ("disk", "disk"): ("os:fsync",),
}
"""Role and moment: the functions that are trapped, as module and name. Each is passed twice, before and after its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Do `action` when `moment` has been passed `skip` times by a process of `role`; a delay takes `seconds`."""

    number: int
    role: str
    moment: str
    action: str
    skip: int = 0
    seconds: float = 0.0


def give(directory: Path, order: Order) -> None:
    """Let the processes of a run carry out `order`, once."""
    attempt = directory / f"{ORDER}.new"
    attempt.write_text(json.dumps(asdict(order)))
    attempt.rename(directory / ORDER)


def withdraw(directory: Path) -> None:
    """Whatever was ordered and not begun is not to be done."""
    (directory / ORDER).unlink(missing_ok=True)


def carried_out(directory: Path, number: int) -> float | None:
    """When the order was carried out, on `CLOCK`; None if it was not yet."""
    try:
        return float((directory / f"done-{number}").read_text())
    except FileNotFoundError:
        return None


class Trap:
    """The passes of one process through one moment."""

    def __init__(self, directory: Path, role: str, moment: str) -> None:
        self._directory, self._role, self._moment = directory, role, moment
        self._order, self._passes = -1, 0

    def spring(self) -> str:
        """Called at every pass. Returns the action, if it is one that the caller has to do itself, or an empty string."""
        try:
            order = Order(**json.loads((self._directory / ORDER).read_text()))
        except FileNotFoundError:
            return ""
        if (order.role, order.moment) != (self._role, self._moment):
            return ""
        if order.number != self._order:
            self._order, self._passes = order.number, 0
        self._passes += 1
        if self._passes <= order.skip or not self._take(order):
            return ""
        return _do(order)

    def _take(self, order: Order) -> bool:
        """Whether this process is the one to carry out the order; then it is written down that it does, and when."""
        taken, done = self._directory / f"taken-{order.number}", self._directory / f"done-{order.number}"
        try:
            (self._directory / ORDER).rename(taken)
        except FileNotFoundError:
            return False
        when = taken.with_name(f"{done.name}.new")  # not into the file that others may be reading as an order
        when.write_text(repr(CLOCK()))
        when.rename(done)
        return True


def _do(order: Order) -> str:
    if order.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order.action == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif order.action == "delay":
        time.sleep(order.seconds)
    elif order.action in ("full", "read-only"):
        number = errno.ENOSPC if order.action == "full" else errno.EROFS
        raise OSError(number, os.strerror(number))
    elif order.action == "error":
        raise RuntimeError("made to fail")
    else:
        return order.action
    return ""


def trapped(function: Callable, trap: Trap) -> Callable:
    """`function`, passing `trap` before and after its work."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def overlapping(*args: Any, **kwargs: Any) -> Any:
            trap.spring()
            result = await function(*args, **kwargs)
            trap.spring()
            return result

        return overlapping

    @functools.wraps(function)
    def sync(*args: Any, **kwargs: Any) -> Any:
        trap.spring()
        result = function(*args, **kwargs)
        trap.spring()
        return result

    return sync


def lay(*roles: str) -> None:
    """Put the traps of `roles` into this process."""
    directory = Path(os.environ[DIRECTORY])
    for (role, moment), places in POINTS.items():
        for place in places if role in roles else ():
            owner, name = found(place)
            setattr(owner, name, trapped(getattr(owner, name), Trap(directory, role, moment)))


def found(place: str) -> tuple[Any, str]:
    """The module or class that has the function of `place`, and its name there."""
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def made(role: str, factory: Callable, *args: Any, **kwargs: Any) -> Any:
    """What `factory` makes, in a process with the traps of `role`."""
    lay(role)
    return factory(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class BadTask:
    """A task whose reward function can be made to raise, to hang, to return nonsense and to say too much."""

    task: ScoringConfig

    def build(self) -> Scoring:
        """Raises what the task raises."""
        trap = Trap(Path(os.environ[DIRECTORY]), "verifier", "verifier")
        return _BadScoring(_misjudging(self.task.build().reward, trap))


@dataclass(frozen=True, slots=True)
class _BadScoring:
    reward: RewardFunction


def _misjudging(reward: RewardFunction, trap: Trap) -> RewardFunction:
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):

        async def overlapping(*arguments: Any) -> Any:
            match trap.spring():
                case "hang":
                    await asyncio.sleep(3600.0)
                case "":
                    return await reward(*arguments)
                case nonsense:
                    return _nonsense(nonsense)

        return overlapping

    def sync(*arguments: Any) -> Any:
        match trap.spring():
            case "hang":
                time.sleep(3600.0)
            case "":
                return reward(*arguments)
            case nonsense:
                return _nonsense(nonsense)

    return sync


def _nonsense(action: str) -> Any:
    return float("nan") if action == "garbage" else RewardResult(1.0, info={"said": "x" * FLOOD})
