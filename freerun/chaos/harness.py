"""Starts runs, hurts them, watches what they do about it, resumes them, and audits what came of it.

A cycle is one fault: it is made to happen, and the cycle ends when the run makes progress again, by itself (healed) or after
`freerun resume` (resumed). What is drawn follows from the seed; when it strikes depends on how fast the machine is.
"""

import math
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freerun.chaos import audit, faults, traps
from freerun.chaos.attempt import Attempt, Seen
from freerun.chaos.faults import ANY, Fault
from freerun.checkpoint import JOURNAL, MANIFEST, Checkpoints
from freerun.errors import Stalled
from freerun.placement import processes
from freerun.placement.monarch_nursery import Nursery

PERIOD = 0.005
"""Seconds between two looks."""
STUCK = 240.0
"""Seconds in which a run that was hurt has to get on: far more than it takes, because the machine may be busy."""
RESUMES = 8
"""How often a run that was hurt once may end before it gets on."""
ARMED = 150.0
"""Seconds in which a moment that was ordered has to come."""
STARTED = 12.0
"""Seconds in which a run has started, about."""
EXPECTED = {0, 1, 3, 130, -signal.SIGKILL}
"""Exit statuses of an attempt that ended in a way that it should know."""


@dataclass(slots=True)
class Cycle:
    """One fault and what came of it. Seconds are nan where they do not apply: `noticed` from the fault to the record of a
    death, or to the end of the attempt with everything of it gone; `healed` from the fault to the successor in its place, or to
    the first step of the resumed run."""

    fault: Fault
    outcome: str = ""
    noticed: float = float("nan")
    healed: float = float("nan")
    attempts: int = 0
    leaked: list[str] = field(default_factory=list)
    silent: bool = False


@dataclass(slots=True)
class RunResult:
    """One run from its first attempt to its end, and the audit of it."""

    seed: int
    cycles: list[Cycle]
    attempts: int
    seconds: float
    lost: list[str]
    repeated: list[str]
    unlike: list[str]


class Harness:
    """Hurts runs of `recipe` below `directory` until `minutes` are over or there were `cycles`. `overrides` are words for
    `freerun run`, `modules` what its executors need; `say` is told of each cycle."""

    def __init__(
        self,
        recipe: str,
        directory: Path,
        *,
        minutes: float,
        seed: int,
        cycles: int | None,
        overrides: Sequence[str],
        modules: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.directory, self.overrides, self.say = recipe, directory, overrides, say
        self._deadline, self._cycles, self._seed = time.monotonic() + 60.0 * minutes, cycles, seed
        self._faults = faults.drawn(seed)
        self._draw = random.Random(f"{seed}/times")
        self._done, self._orders, self._modules = 0, 0, tuple(modules)
        self.nursery: Nursery

    def runs(self) -> Iterator[RunResult]:
        """One run after the other."""
        self.nursery, number = Nursery(self._modules), 0
        try:
            self.nursery.wait()
            while self._more():
                yield Run(self, self.directory / f"run-{number}", seed=self._seed * 1000 + number).live()
                number += 1
        finally:
            self.nursery.close()

    def _more(self) -> bool:
        return time.monotonic() < self._deadline and (self._cycles is None or self._done < self._cycles)

    def next_fault(self) -> Fault | None:
        """The next one, or None if it was enough."""
        if not self._more():
            return None
        self._done += 1
        return next(self._faults)

    def order(self, work: Path, role: str, fault: Fault) -> int:
        """Have the processes of a run carry out `fault`; the number of the order."""
        self._orders += 1
        skip = (
            self._draw.randrange(6)
            if fault.moment not in ("start", "shutdown", "healing", "compaction")
            else self._draw.randrange(2)
        )
        seconds = self._draw.uniform(0.2, 2.5)
        traps.give(
            work,
            traps.Order(number=self._orders, role=role, moment=fault.moment, action=fault.action, skip=skip, seconds=seconds),
        )
        return self._orders

    def pause(self, most: float) -> float:
        """A random number of seconds."""
        return self._draw.uniform(0.0, most)

    def chance(self, share: float) -> bool:
        return self._draw.random() < share

    def choose(self, size: int) -> int:
        return self._draw.randrange(size)


class Run:
    """One run, hurt until it ends."""

    def __init__(self, harness: Harness, work: Path, *, seed: int) -> None:
        work.mkdir(parents=True)
        self._harness, self._work, self._seed = harness, work, seed
        self._directory = work / "run"
        self._ledger = audit.Ledger(self._directory)
        self._attempts = 0
        self._attempt: Attempt
        self.cycles: list[Cycle] = []

    def live(self) -> RunResult:
        began = time.monotonic()
        words = ["run", self._harness.recipe, "--dir", str(self._directory), "--plain", *self._harness.overrides]
        self._begin([*words, "--seed", str(self._seed)])
        try:
            self._until(lambda seen: seen.steps > 0)
            while self._attempt.status is None and (fault := self._harness.next_fault()) is not None:
                self._wait(self._harness.pause(1.0))
                self._strike(fault)
            self._finish()
        finally:
            self._attempt.kill()
        found = self._ledger.audit()
        return RunResult(
            seed=self._seed,
            cycles=self.cycles,
            attempts=self._attempts,
            seconds=time.monotonic() - began,
            lost=found.lost,
            repeated=found.repeated,
            unlike=found.unlike,
        )

    # --- one fault -----------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        """Make `fault` happen and wait until the run gets on."""
        cycle = Cycle(fault)
        struck: float | None
        if fault.target in ("checkpoint", "journal"):
            struck = self._kill("controller")
        elif fault.moment == ANY:
            struck = self._from_outside(fault)
        else:
            struck = self._from_inside(fault)
        if struck is not None and fault.action == "freeze" and "controller" in fault.names:
            self._wait(processes.FROZEN)  # as a run with `--restarts` waits for it, before it is killed and resumed
            self._kill("controller")
        self._follow(cycle, struck)
        if struck is None:
            cycle.outcome = "missed"
        self.cycles.append(cycle)
        self._harness.say(line(cycle))

    def _from_outside(self, fault: Fault) -> float | None:
        """A signal at a random moment. None if there is nobody to send it to."""
        pids = [pid for name in sorted(fault.names) for pid in self._attempt.pids(name)]
        if not pids:
            return None
        if fault.action == "interrupt":
            self._attempt.signal(pids, signal.SIGINT if self._harness.chance(0.5) else signal.SIGTERM)
            return traps.CLOCK()
        if fault.action in ("freeze", "delay"):
            self._attempt.signal(pids, signal.SIGSTOP)
            struck = traps.CLOCK()
            if fault.action == "delay":
                self._wait(self._harness.pause(2.5))
                self._attempt.signal(pids, signal.SIGCONT)
            return struck
        self._attempt.signal(pids, signal.SIGKILL)
        return traps.CLOCK()

    def _kill(self, name: str) -> float | None:
        return self._from_outside(Fault(name, "kill"))

    def _from_inside(self, fault: Fault) -> float | None:
        """At a named moment, which is provoked if it would not come by itself. None if it did not come in time."""
        if fault.target in ("trainer", "controller") and fault.moment == "start":
            self._kill("controller")
            self._attempt.wait()
            self._resume()
            if fault.target == "controller":
                self._wait(self._harness.pause(STARTED))
                return self._kill("controller")
        number = self._harness.order(self._work, fault.target, fault)
        if fault.moment == "start":
            self._kill(fault.target)
        elif fault.moment == "shutdown":
            self._attempt.signal(self._attempt.pids("controller"), signal.SIGTERM)
        elif fault.moment == "healing":
            self._kill("generator")
        end = time.monotonic() + ARMED
        while traps.carried_out(self._work, number) is None and time.monotonic() < end and self._attempt.status is None:
            self._look()
        traps.withdraw(self._work)
        return traps.carried_out(self._work, number)

    # --- what becomes of it --------------------------------------------------------------------------------------------------

    def _follow(self, cycle: Cycle, struck: float | None) -> None:
        """Wait until the run gets on, resuming it as often as it takes. None if nothing was done to it."""
        effect = cycle.fault.effect if struck is not None else "go on"
        waiting = set(cycle.fault.names) if effect == "heal" else set()
        attempts, number = 0, self._attempts
        struck = traps.CLOCK() if struck is None else struck
        while True:
            seen = self._look()
            if self._attempt.status is None:
                if seen.died and math.isnan(cycle.noticed):
                    cycle.noticed = traps.CLOCK() - struck
                if seen.respawned and math.isnan(cycle.healed) and number == self._attempts:
                    cycle.healed = traps.CLOCK() - struck
                waiting -= {name.partition("-")[0] for name in seen.respawned}
                if seen.steps and (number != self._attempts or not (waiting or effect == "end")):
                    break
            elif self._ended(cycle, struck):
                return
            else:
                attempts += 1
                self._resume()
            if traps.CLOCK() - struck > STUCK * (1 + attempts) or attempts > RESUMES:
                raise Stalled(
                    "a run that was hurt did not get on",
                    given=f"{cycle.fault}; its records are in {self._work}",
                    expected=f"a step within {STUCK:g} s",
                    todo="look at its output and events",
                )
        cycle.attempts = attempts
        cycle.outcome = "resumed" if attempts else "healed"
        if attempts:
            cycle.healed = traps.CLOCK() - struck

    def _ended(self, cycle: Cycle, struck: float) -> bool:
        """Account for an attempt that ended; whether the run did."""
        status, said = self._attempt.status, self._attempt.said()
        cycle.leaked += self._attempt.left()
        if math.isnan(cycle.noticed):
            cycle.noticed = traps.CLOCK() - struck
        command = f"freerun resume {self._directory}"
        if status not in EXPECTED or (status != 0 and command not in said and self._attempt.summary()):
            cycle.silent = True
        self._ledger.note(self._directory / JOURNAL)
        if status == 0:
            cycle.outcome = "finished"
            return True
        if cycle.fault.target in ("checkpoint", "journal") and not cycle.attempts:
            self._corrupt(cycle.fault.target)
        return False

    def _corrupt(self, target: str) -> None:
        """Hurt the newest of at least two checkpoints, or the journal: a flipped byte, a cut, a stretch of zeros."""
        if target == "journal":
            path = self._directory / JOURNAL
            if not path.exists():
                return
            self._ledger.forgive(path)
        else:
            found = Checkpoints(self._directory / "checkpoints").all()
            if len(found) < 2:
                return
            files = sorted(p for p in found[-1].rglob("*") if p.is_file() and p.stat().st_size)
            path = found[-1] / MANIFEST if self._harness.chance(0.3) else files[self._harness.choose(len(files))]
        data = bytearray(path.read_bytes())
        if not data:
            return
        at = self._harness.choose(len(data))
        match self._harness.choose(3):
            case 0:
                data[at] ^= 1 << self._harness.choose(8)
            case 1:
                del data[at:]
            case _:
                data[at : at + 64] = bytes(len(data[at : at + 64]))
        path.write_bytes(data)

    # --- attempts ------------------------------------------------------------------------------------------------------------

    def _begin(self, words: Sequence[str]) -> None:
        self._attempt = Attempt(words, self._work, self._directory, self._attempts, self._harness.nursery)
        self._attempts += 1

    def _resume(self) -> None:
        self._ledger.note(self._directory / JOURNAL)
        traps.withdraw(self._work)
        self._begin(["resume", str(self._directory), "--plain"])

    def _finish(self) -> None:
        """Let the run come to its end."""
        traps.withdraw(self._work)
        while self._attempt.status != 0:
            end = time.monotonic() + STUCK
            while self._attempt.status is None and time.monotonic() < end:
                if self._look().steps:
                    end = time.monotonic() + STUCK
            if self._attempt.status is None:
                raise Stalled(
                    "a run did not come to its end",
                    given=f"its records are in {self._work}",
                    expected=f"a step every {STUCK:g} s",
                    todo="look at its output and events",
                )
            if self._attempt.status != 0:
                self._resume()

    def _look(self) -> Seen:
        time.sleep(PERIOD)
        seen = self._attempt.look()
        if seen.steps:
            self._attempt.note()
        return seen

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()

    def _until(self, ready: Callable[[Seen], bool]) -> None:
        end = time.monotonic() + STUCK
        while self._attempt.status is None and not ready(self._look()):
            if time.monotonic() > end:
                raise Stalled(
                    "a run did not begin", given=f"records in {self._work}", expected="a step", todo="look at its output"
                )


def line(cycle: Cycle) -> str:
    """What came of one fault, for people; times that there are not are not said."""
    fault = cycle.fault
    said = [cycle.outcome]
    said += [f"noticed after {cycle.noticed:.2f} s"] if not math.isnan(cycle.noticed) else []
    said += [f"going on after {cycle.healed:.1f} s"] if not math.isnan(cycle.healed) else []
    said += [f"LEAKED {'; '.join(cycle.leaked)}"] if cycle.leaked else []
    said += ["SILENT"] if cycle.silent else []
    return f"{fault.action} {fault.target} ({fault.moment}): {', '.join(said)}"
