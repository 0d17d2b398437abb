"""Replay under random delays: the real table, the real supply, simulated actors and a simulated trainer. However long chunks
and updates take, updates keep to what environment steps made due, nothing too old is drawn, and somebody can always go on."""

import heapq
from dataclasses import dataclass, field
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.collection import TRAINER, Replay
from freerun.env_schedule import EnvSchedule, Work, work_of
from freerun.store.phases import Phase
from freerun.transitions import Chunk

ROWS = 8
"""Transitions of a chunk."""


@dataclass
class Simulation:
    """Actors that begin chunks whenever they may, a trainer that makes steps whenever they are due; each takes as long as
    `delay()` says."""

    schedule: EnvSchedule
    phase: Phase
    actors: int
    delay: object
    capacity: int = 1000
    version: int = 0
    updates: int = 0
    begun: int = 0
    stored: int = 0
    forgone: bool = False
    waiting: set[int] = field(default_factory=set)
    events: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work: Work = work_of(self.phase, self.schedule, rows=ROWS, rollouts=False)
        self.supply = Replay(self.schedule, capacity=self.capacity)
        self.supply.begin_phase(self.work)
        self.waiting = set(range(self.actors))
        self.training = False
        self.numbers = count()

    def run(self) -> None:
        self.go_on()
        while self.events:
            _, _, what, detail = heapq.heappop(self.events)
            if what == "chunk":
                actor, version = detail
                chunk = Chunk(item=self.supply.next_key(), actor=actor, columns={}, oldest_version=version)
                self.waiting.add(actor)
                # How long its answer takes is the wire's, so answers come in any order.
                self.later("stored", chunk)
            elif what == "stored":
                self.supply.stored(detail)
                self.stored += 1
            else:
                self.version += 1
                self.training = False
            self.check()
            self.go_on()
        assert self.stored == self.work.chunks, "actors wait for ever"
        assert self.updates >= self.work.updates or self.forgone, "the trainer waits for ever"

    def go_on(self) -> None:
        """Everybody who may begins what is next."""
        for actor in sorted(self.waiting):
            if self.begun < self.work.chunks and self.supply.order(self.version, actor) is not None:
                self.begun += 1
                self.waiting.remove(actor)
                self.later("chunk", (actor, self.version))
        wanted = self.work.updates if self.stored == self.work.chunks else self.work.most
        num = min(self.work.batch, wanted - self.updates)
        table = self.supply.table
        if self.training or num <= 0:
            return
        if table.drawable(TRAINER, num, self.version) >= num:
            assert table.spend(TRAINER, num, self.version) == num
            self.check_ages()
            self.updates += num
            self.training = True
            self.later("step", None)
        elif self.stored == self.work.chunks and not table.drawable(TRAINER, 1, self.version):
            self.forgone = True

    def later(self, what: str, detail: object) -> None:
        now = self.events[0][0] if self.events else 0.0
        heapq.heappush(self.events, (now + self.delay(), next(self.numbers), what, detail))

    def check(self) -> None:
        """The limits of `Turns`; the upper one only without a largest age, since what was given up cannot be drawn."""
        schedule, work = self.schedule, self.work
        if not work.updates:
            return
        ratio = work.updates / (work.chunks - work.size)
        due = ratio * (self.stored - work.size) - self.updates
        most = work.most / (work.chunks - work.size)
        assert self.updates <= max(0.0, most * (self.stored - work.size)) + schedule.lead + 1e-6
        if schedule.max_age is None:
            assert due < work.batch + (schedule.ahead + 1) * ratio + 1e-6

    def check_ages(self) -> None:
        versions = [version for _, version, *_ in self.supply.table.state()["entries"]]
        if self.schedule.max_age is not None:
            assert all(self.version - version <= self.schedule.max_age for version in versions)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_updates_keep_to_what_is_due_and_nobody_waits_for_ever(data) -> None:
    draw = data.draw
    chunks = draw(st.integers(1, 40), label="chunks")
    start = draw(st.integers(0, chunks - 1), label="chunks before the first update")
    utd = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0, 3.7]), label="utd")
    most = draw(st.sampled_from([0.0, 0.5, 4.0]), label="utd where the trainer would wait") if utd else 0.0
    schedule = EnvSchedule(
        phases=(Phase(env_steps=chunks * ROWS, start=start * ROWS, utd=utd, utd_most=most),),
        updates=draw(st.integers(0, 30), label="updates per step"),
        ahead=draw(st.integers(0, 4), label="ahead"),
        lead=draw(st.sampled_from([0.0, 3.0, 20.0]), label="lead"),
        max_age=draw(st.none() | st.integers(0, 5), label="max age"),
    )
    # Delays from a drawn seed: shrinking lists of hundreds of numbers would take all the time.
    random = draw(st.randoms(use_true_random=False))
    simulation = Simulation(
        schedule=schedule,
        phase=schedule.phases[0],
        actors=draw(st.integers(1, 5), label="actors"),
        delay=lambda: random.lognormvariate(0.0, 1.5),
        capacity=draw(st.integers(1, 60), label="capacity"),
    )
    simulation.run()
    if schedule.max_age is None:
        assert simulation.work.updates <= simulation.updates <= simulation.work.most


def test_in_strict_turns_a_second_actor_changes_nothing_about_who_is_ahead() -> None:
    """One update per step, 8 steps a chunk: after each chunk exactly 8 updates."""
    schedule = EnvSchedule(phases=(Phase(env_steps=10 * ROWS, utd=1.0),))
    simulation = Simulation(schedule=schedule, phase=schedule.phases[0], actors=3, delay=lambda: 1.0)
    seen = []
    original = simulation.check
    simulation.check = lambda: (seen.append(simulation.stored * ROWS - simulation.updates), original())
    simulation.run()
    assert set(seen) == {0, ROWS}
