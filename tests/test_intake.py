"""Deaths and crashes: executors are started anew, what was finished is never made again. On the fakes of `fakes.py`."""

import asyncio
import json

import pytest
from fakes import PROMPTS, Generator, Records, Rewarder, Trainer, small

from freerun.checkpoint import restore_controller
from freerun.controller import Controller
from freerun.errors import DataError, ExecutorDied, Stalled
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement
from freerun.store import journal
from freerun.types import Example, Sampling, Source


class Mortal:
    """Wraps a fake so that its call number `last` of `method` ends the process; `calls` counts over all lives."""

    def __init__(self, kind, method, lives, calls) -> None:
        self._inner, self._method, self._lives, self._calls = kind(), method, lives, calls

    def _count(self):
        self._calls.append(1)
        if len(self._calls) in self._lives:
            raise SystemExit(9)

    def advance(self, requests, ref, steps):
        self._count()
        return self._inner.advance(requests, ref, steps)

    async def score(self, requests):
        self._count()
        return await self._inner.score(requests)


class Crashing(Trainer):
    """Fails in its optimiser step number `last`, as a process that is killed would."""

    def __init__(self, last) -> None:
        super().__init__()
        self.last = last

    def finish_step(self, keep):
        if self.version == self.last:
            raise DataError("crash", given="", expected="", todo="")
        return super().finish_step(keep)


class Counting(Generator):
    """Writes down what it is asked for."""

    def __init__(self, asked) -> None:
        super().__init__()
        self.asked = asked

    def advance(self, requests, ref, steps):
        self.asked += [r.item for r in requests]
        return super().advance(requests, ref, steps)


async def started(config, *, generator=(Generator,), rewarder=(Rewarder,), trainer=(Trainer,), **settings):
    place = InlinePlacement(schedule="serial")
    handles = await place.spawn(
        [
            ExecutorSpec(name="generator", factory=generator[0], args=generator[1:]),
            ExecutorSpec(name="rewarder", factory=rewarder[0], args=rewarder[1:]),
            ExecutorSpec(name="trainer", factory=trainer[0], args=trainer[1:]),
        ]
    )
    controller = Controller(
        config,
        placement=place,
        generators=[handles["generator"]],
        rewarder=handles["rewarder"],
        trainer=handles["trainer"],
        **{
            "prompts": PROMPTS,
            "heldout": PROMPTS[:5],
            "sampling": Sampling(),
            "eval_sampling": Sampling(temperature=0.0),
            "accuracy": lambda r: float(r.value > 0),
            "sink": Records(),
            "seed": 3,
            **settings,
        },
    )
    return place, controller


def run(config, *, restore=False, **settings):
    """Returns the controller and what the trainer trained on; with `restore`, goes on from the journal first."""

    async def go():
        place, controller = await started(config, **settings)
        try:
            if restore:
                restore_controller(controller, None)
            await controller.run()
            return controller, await controller.trainer.call("history", deadline=5.0)
        finally:
            await place.stop()
            if controller.intake.journal is not None:
                controller.intake.journal.close()

    return asyncio.run(asyncio.wait_for(go(), 60))


def trained(history):
    return [item for _, items, _, _ in history for item in items]


@pytest.mark.parametrize("kind, method", [(Generator, "generator"), (Rewarder, "rewarder")])
def test_an_executor_that_died_is_started_anew_and_every_item_is_trained_once(kind, method):
    calls = []
    controller, history = run(small(), **{method: (Mortal, kind, method, {2, 7, 11}, calls)})
    items = trained(history)
    assert len(items) == len(set(items)) == 36
    assert len(calls) > 11
    controller.intake.admission.audit()
    whats = [event.what for event in controller.sink.events if event.executor == method]
    assert whats.count("died") == whats.count("respawned") == 3


def test_items_of_a_dead_generator_wait_again_without_counting_as_failed():
    controller, _ = run(small(eval_every=0, final_eval_prompts=0), generator=(Mortal, Generator, "generator", {3}, []))
    assert controller.intake.admission.failures.total() == 0


def test_an_executor_that_dies_too_often_ends_the_run_by_name():
    config = small(executor_restarts=2)
    with pytest.raises(ExecutorDied, match="'generator' died 3 times"):
        run(config, generator=(Mortal, Generator, "generator", range(1, 100), []))


class Stillborn(Generator):
    """Fails in its call number 2, and then cannot be started for `lives` times."""

    def __init__(self, lives, calls) -> None:
        super().__init__()
        self._calls = calls
        calls.append("born")
        if 1 < calls.count("born") <= 1 + lives:
            raise SystemExit(9)

    def advance(self, requests, ref, steps):
        self._calls.append("called")
        if self._calls.count("called") == 2:
            raise SystemExit(9)
        return super().advance(requests, ref, steps)


def test_an_executor_that_dies_while_it_is_started_anew_is_started_once_more():
    calls = []
    controller, history = run(small(), generator=(Stillborn, 2, calls))
    assert len(trained(history)) == len(set(trained(history))) == 36
    assert calls.count("born") == 4
    died = [event.detail["how"] for event in controller.sink.events if event.what == "died"]
    assert len(died) == 3 and all("exit status 9" in how for how in died)
    with pytest.raises(ExecutorDied, match="'generator' died 4 times"):
        run(small(), generator=(Stillborn, 3, []))


def test_evaluations_survive_the_death_of_a_generator():
    controller, _ = run(small(), generator=(Mortal, Generator, "generator", {1}, []))
    assert next((e.split, e.step, e.count) for e in controller.sink.evaluations) == ("heldout", 0, 5)


def crash_and_resume(tmp_path, last):
    """A run that crashes in step `last`, and the run that goes on from its journal; what generators were asked for in each."""
    config = small(steps=6, eval_every=0, final_eval_prompts=0, max_lag=2)
    path, asked = tmp_path / "journal", ([], [])
    with pytest.raises(DataError, match="crash"):
        run(config, generator=(Counting, asked[0]), trainer=(Crashing, last), journal=journal.Journal(path))
    finished = {record.item for record in journal.read(path)}
    _, history = run(config, generator=(Counting, asked[1]), journal=journal.Journal(path), restore=True)
    return finished, history, asked


@pytest.mark.parametrize("last", [0, 1, 4])
def test_finished_groups_are_not_made_again_after_a_crash(tmp_path, last):
    finished, history, asked = crash_and_resume(tmp_path, last)
    assert finished
    assert not finished & set(asked[1])
    assert sorted(trained(history)) == list(range(18))


def test_groups_of_updates_that_were_lost_are_used_in_their_turn(tmp_path):
    _, history, _ = crash_and_resume(tmp_path, 4)
    assert max(record.oldest for record in journal.read(tmp_path / "journal")) > 0, "made by versions that the crash lost"
    assert all(0 <= lag <= 2 for _, _, lags, _ in history for lag in lags)


def test_dropped_items_are_dropped_again_for_the_same_reason(tmp_path):
    config = small(steps=3, eval_every=0, final_eval_prompts=0, skip_uniform=True, max_skips=1)
    path = tmp_path / "journal"
    with pytest.raises(DataError, match="crash"):
        run(config, rewarder=(Rewarder, 1.0), trainer=(Crashing, 1), journal=journal.Journal(path))
    dropped = {r.item: r.reason for r in journal.read(path) if r.reason}
    controller, _ = run(config, rewarder=(Rewarder, 1.0), journal=journal.Journal(path), restore=True)
    assert dropped
    assert all(controller.intake.admission.ledger.outcome(item) == reason for item, reason in dropped.items())


def test_a_data_set_needs_no_generator_and_is_trained_in_its_seeded_order():
    examples = [Example(uid=p.uid, prompt=p, responses=("a", "b"), source=Source.DATASET) for p in PROMPTS]
    asked = []
    controller, history = run(
        small(eval_every=0, final_eval_prompts=0, max_lag=0), generator=(Counting, asked), trainer=(Listing,), prompts=examples
    )
    assert asked == []
    assert len(history) == 12
    epoch = [uid for uids in history for uid in uids][:20]
    assert sorted(epoch) == sorted(p.uid for p in PROMPTS)
    controller.intake.admission.audit()


class Listing(Trainer):
    """Remembers the uids of each step."""

    def finish_step(self, keep):
        self.log.append([item.uid for item in self.taken])
        self.taken = []
        report = super().finish_step(keep)
        self.log.pop()
        return report


def test_replayed_groups_and_demonstrations_are_added_to_each_step():
    experts = [Example(uid=f"e{i}", prompt=p, responses=("a",), source=Source.EXPERT) for i, p in enumerate(PROMPTS)]

    class Sources(Trainer):
        def finish_step(self, keep):
            self.log.append([str(item.source) for item in self.taken])
            self.taken = []
            report = super().finish_step(keep)
            self.log.pop()
            return report

    config = small(eval_every=0, final_eval_prompts=0, experts=2, replay=4, replay_age=2)
    _, history = run(config, trainer=(Sources,), experts=experts)
    assert history[0] == ["rollout"] * 3 + ["expert"] * 2
    assert all(step == ["rollout"] * 3 + ["replay"] * 4 + ["expert"] * 2 for step in history[1:])


def test_a_resumed_run_repeats_the_draws_of_its_replay():
    config = small(eval_every=0, final_eval_prompts=0, replay=4)
    controller, _ = run(config)
    state = json.loads(json.dumps(controller.replay.state()))
    expected = [g.item for g in controller.replay.draw(12)]
    controller.replay.restore(state, dict(controller.replay.groups))
    assert [g.item for g in controller.replay.draw(12)] == expected


def test_a_run_in_which_nobody_can_go_on_ends_and_says_who_waits_for_whom(monkeypatch, tmp_path):
    monkeypatch.setattr("freerun.program.STALL_PERIOD", 0.05)
    monkeypatch.setattr("freerun.intake.Intake._order", lambda self, item: None)  # an item that nobody works on
    config, sink = small(eval_every=0, final_eval_prompts=0, stall_deadline=0.2), Records()
    with pytest.raises(Stalled, match=r"(?s)nobody can go on.*generator: .*trainer: waiting for groups"):
        run(config, sink=sink, directory=tmp_path)
    (stalled,) = [event for event in sink.events if event.what == "stalled"]
    assert any("trainer" in line for line in stalled.detail["waiting"])
    assert "most recent call first" in (tmp_path / stalled.detail["stacks"][0]).read_text()
