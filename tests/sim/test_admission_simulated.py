"""The real admission state machine, driven by a simulated clock: actors that are slow, fail and die, a trainer that takes a
step in pieces and publishes late, and crashes of the whole program at any event, with recovery from checkpoint and journal."""

import heapq
import itertools
import json
import math
import random
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freerun.errors import StaleItem
from freerun.store.admission import Admission, State
from freerun.store.journal import Journal
from freerun.store.recovery import Recovery, needed_by

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where flushing a file costs nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """All that admission reads of a `freerun.types.Failure`."""

    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    batch: int
    max_lag: int
    window: int
    retries: int = 2
    actors: int = 3
    failing: float = 0.0
    dying: float = 0.0
    dropped: float = 0.0
    eager: bool = True
    publishing: float = 0.5
    checkpoint_every: int = 1
    seed: int = 0
    steps: int = 6

    @property
    def bound(self) -> int:
        return self.max_lag + math.ceil((self.window - 1) / self.batch)

    @property
    def beginning(self) -> dict[str, Any]:
        """What there is to go back to before the first checkpoint."""
        admission = Admission(batch=self.batch, max_lag=self.max_lag, window=self.window, retries=self.retries)
        return {"admission": admission.state(), "weights": []}


@dataclass(slots=True)
class Memory:
    """What survives a crash, and what the test remembers of all lives."""

    path: Path
    checkpoint: dict[str, Any]
    finished: set[int] = field(default_factory=set)
    lags: list[int] = field(default_factory=list)
    too_old: int = 0


class World:
    """One life of the program. `weights` is the simulated network: the items that it was trained on, step by step."""

    def __init__(self, scenario: Scenario, memory: Memory, journal: Journal, life: int) -> None:
        self.s, self.memory, self.rng = scenario, memory, random.Random(scenario.seed * 1000 + life)
        self.journal = journal
        self.time, self._serial, self.events = 0.0, itertools.count(), []
        self.idle_actors, self.queue, self.pieces, self.busy = scenario.actors, [], [], False
        saved = json.loads(json.dumps(memory.checkpoint))
        self.weights: list[list[int]] = saved["weights"]
        self.recovery = Recovery(saved["admission"], self.journal.records())
        self.admission, self.queue = self.recovery.admission, self.recovery.waiting
        memory.finished = {record.item for record in self.journal.records()}
        memory.too_old += self.recovery.too_old
        if self.admission.trainer_version > self.admission.published_version:
            self.admission.published(self.admission.trainer_version)
        self.react()

    def later(self, mean: float, what: Any, *args: Any) -> None:
        delay = self.rng.choice((0.0, self.rng.expovariate(1 / mean), 20 * mean * self.rng.random() ** 4))
        heapq.heappush(self.events, (self.time + delay, next(self._serial), what, args))

    def step(self) -> bool:
        """Run the next event; False when there is none."""
        if not self.events:
            return False
        self.time, _, what, args = heapq.heappop(self.events)
        what(*args)
        self.react()
        self.admission.audit()
        return True

    def react(self) -> None:
        """What the controller does whenever something has changed."""
        self.admit()
        while self.idle_actors and self.queue:
            item = self.queue.pop(0)
            self.idle_actors -= 1
            assert item not in self.memory.finished, f"item {item} is finished and generated again"
            version = self.admission.published_version
            self.admission.begin(item, version)
            chances = (self.s.dying, self.s.failing, 1 - self.s.dying - self.s.failing)
            self.later(1.0, *self.rng.choices((self.die, self.fail, self.finish), chances), item, version)
        wanted = 1 if self.s.eager else self.s.batch - len(self.pieces)
        if not self.busy and len(self.weights) < self.s.steps and self.admission.ready() >= wanted:
            items = self.admission.take(self.rng.randint(1, self.s.batch), self.admission.trainer_version)
            self.memory.lags += [self.admission.trainer_version - self.admission.items[i].oldest for i in items]
            if self.s.max_lag == 0:
                assert self.admission.published_version == self.admission.trainer_version
            self.pieces += items
            self.busy = True
            self.later(0.3, self.trained_piece)

    def admit(self) -> None:
        while (item := self.admission.admit(f"prompt {self.admission.next_item}")) is not None:
            if self.admission.capacity == (self.s.max_lag + 1) * self.s.batch:
                assert self.admission.items[item].least <= self.admission.published_version, "what the bound rests on"
            if self.recovery.settle(item) is None:
                self.queue.append(item)

    def finish(self, item: int, version: int) -> None:
        self.idle_actors += 1
        oldest = self.rng.randint(version, self.admission.published_version)
        uid = self.admission.items[item].uid
        self.memory.finished.add(item)
        if self.rng.random() < self.s.dropped:
            self.journal.dropped(item, uid, "uniform rewards")
            self.admission.finish(item, oldest)
            self.admission.drop(item, "uniform rewards")
        else:
            self.journal.finished(item, uid, oldest, f"group {item}".encode())
            self.admission.finish(item, oldest)

    def fail(self, item: int, version: int) -> None:
        self.idle_actors += 1
        uid = self.admission.items[item].uid
        if self.admission.fail(item, Failure(kind="timeout")):
            self.queue.insert(0, item)
        else:
            self.journal.dropped(item, uid, "timeout")
            self.memory.finished.add(item)

    def die(self, item: int, version: int) -> None:
        self.admission.requeue(item)
        self.queue.insert(0, item)
        self.later(2.0, self.respawn)

    def respawn(self) -> None:
        self.idle_actors += 1

    def trained_piece(self) -> None:
        self.busy = False
        if len(self.pieces) == self.s.batch:
            version = self.admission.trainer_version + 1
            self.admission.trained(self.pieces, version)
            self.weights.append(self.pieces)
            self.pieces = []
            self.later(self.s.publishing, self.publish, version)

    def publish(self, version: int) -> None:
        if version > self.admission.published_version:
            self.admission.published(version)
        if self.rng.randrange(self.s.checkpoint_every) == 0:
            self.memory.checkpoint = {"admission": self.admission.state(), "weights": [list(items) for items in self.weights]}
            self.journal.compact(needed_by(self.admission.state()))

    @property
    def done(self) -> bool:
        return self.admission.published_version >= self.s.steps


def run(scenario: Scenario, crashes: tuple[int, ...] = (), torn: bool = False) -> tuple[World, Memory]:
    """All lives of a run: life `i` ends after `crashes[i]` events, the last one at the last step."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        memory = Memory(Path(folder) / "journal", scenario.beginning)
        for life, length in enumerate((*crashes, 10**9)):
            with closing(Journal(memory.path, fsync_every=0)) as journal:
                world = World(scenario, memory, journal, life)
                for _ in range(length):
                    if world.done:
                        break
                    assert world.step(), f"deadlock: {world.admission.counts()}, window {world.admission._order.state()}"
            if world.done:
                return world, memory
            if torn and memory.path.stat().st_size > 40:
                with memory.path.open("r+b") as file:
                    file.truncate(memory.path.stat().st_size - world.rng.randint(1, 20))
    raise AssertionError("unreachable: the last life has no end but the last step")


scenarios = st.builds(
    Scenario,
    batch=st.integers(1, 5),
    max_lag=st.integers(0, 3),
    window=st.integers(1, 12),
    retries=st.integers(0, 2),
    actors=st.integers(1, 6),
    failing=st.sampled_from([0.0, 0.2]),
    dying=st.sampled_from([0.0, 0.2]),
    dropped=st.sampled_from([0.0, 0.2, 0.5]),
    eager=st.booleans(),
    publishing=st.sampled_from([0.01, 0.5, 5.0]),
    checkpoint_every=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(scenarios)
def test_invariant_2_lag_at_consumption_never_exceeds_the_bound(scenario: Scenario) -> None:
    _, memory = run(scenario)
    assert max(memory.lags) <= (scenario.bound if scenario.max_lag else 0)
    assert min(memory.lags) >= 0


@many
@given(scenarios)
def test_invariant_3_the_accounts_balance_at_every_event_and_every_run_ends(scenario: Scenario) -> None:
    world, _ = run(scenario)  # `step` audits after each event, and an empty event list before the last step is a deadlock
    counts = world.admission.counts()
    states = ("waiting", "in_flight", "stored", "training", "trained", "dropped")
    assert counts["admitted"] == sum(counts[state] for state in states)
    assert counts["dropped"] == sum(n for name, n in counts.items() if name.startswith("dropped/"))
    assert counts["trained"] == scenario.batch * world.admission.trainer_version


@many
@given(scenarios, st.lists(st.integers(0, 120), max_size=4), st.booleans())
def test_invariant_4_queue_items_are_trained_exactly_once_across_crashes(
    scenario: Scenario,
    crashes: list[int],
    torn: bool,
) -> None:
    world, memory = run(scenario, tuple(crashes), torn)
    trained = [item for items in world.weights for item in items]
    assert len(trained) == len(set(trained)), "an item is in the surviving weights twice"
    for version, items in enumerate(world.weights, start=1):
        assert all(world.admission.ledger.outcome(item) == version for item in items)
    assert memory.too_old == 0, "a finished item was thrown away"  # and `react` asserts that none is generated again
    assert max(memory.lags) <= (scenario.bound if scenario.max_lag else 0)


@given(scenarios.filter(lambda s: s.window == 1 and s.max_lag == 0))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_without_lag_and_window_every_item_is_made_by_the_version_that_trains_on_it(scenario: Scenario) -> None:
    world, memory = run(scenario)
    assert set(memory.lags) == {0}
    assert [sorted(items) for items in world.weights] == world.weights


@pytest.mark.parametrize(("batch", "max_lag", "window"), [(1, 1, 1), (2, 1, 2), (2, 1, 6), (3, 2, 2), (4, 1, 9), (1, 3, 5)])
def test_the_bound_is_attained_by_a_straggler(batch: int, max_lag: int, window: int) -> None:
    admission = Admission(batch=batch, max_lag=max_lag, window=window)
    straggler, lag = (max_lag + 1) * batch - 1 + 3 * batch, -1
    while lag < 0:
        while (item := admission.admit("")) is not None:
            admission.begin(item, admission.published_version)
            if item != straggler:
                admission.finish(item, admission.published_version)
        if not admission.ready():
            admission.finish(straggler, admission.items[straggler].admitted)
        taken = admission.take(1, admission.trainer_version)
        if straggler in taken:
            lag = admission.trainer_version - admission.items[straggler].oldest
        if len(admission._training) == batch:
            admission.trained(admission._training, admission.trainer_version + 1)
            admission.published(admission.trainer_version)
    assert lag == admission.lag_bound == max_lag + math.ceil((window - 1) / batch)


@pytest.mark.parametrize(("batch", "max_lag", "window"), [(1, 0, 1), (2, 1, 1), (3, 1, 4)])
def test_one_slot_more_would_break_the_bound(batch: int, max_lag: int, window: int) -> None:
    scenario = Scenario(batch=batch, max_lag=max_lag, window=window, actors=8, steps=40)

    class Leaky(World):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.admission.capacity += 1
            self.react()

    with tempfile.TemporaryDirectory() as folder, pytest.raises(StaleItem, match="lag"):
        for seed in range(20):
            path = Path(folder) / f"journal-{seed}"
            with closing(Journal(path, fsync_every=0)) as journal:
                world = Leaky(scenario, Memory(path, scenario.beginning), journal, seed)
                while not world.done and world.step():
                    pass


def test_a_stored_item_keeps_its_place_when_the_step_that_took_it_never_closes() -> None:
    admission = Admission(batch=2, max_lag=1)
    for item in range(4):
        admission.admit(f"prompt {item}")
        admission.begin(item, 0)
        admission.finish(item, 0)
    assert admission.take(1, 0) == [0]
    again = Admission.from_state(json.loads(json.dumps(admission.state())))
    assert again.items[0].state == State.STORED
    assert again.take(2, 0) == [0, 1]
