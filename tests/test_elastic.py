"""More and fewer generators while a run goes on. On the fakes of `fakes.py`."""

import asyncio
import json

import pytest
from fakes import Generator, Records, Report, small
from test_intake import started, trained

from freerun import elastic
from freerun.placement.base import ExecutorSpec

CONFIG = small(steps=40, eval_every=5, final_eval_prompts=0)


class Asking(Records):
    """Asks for other numbers of generators in certain steps."""

    def __init__(self, directory, plan):
        super().__init__()
        self.directory, self.plan = directory, plan

    def step(self, record):
        super().step(record)
        if record.step in self.plan:
            elastic.ask(self.directory, self.plan[record.step])


class Known(Generator):
    """Tells who it is, which items it was asked for, and with which version it began."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log = name, log

    def advance(self, requests, ref, steps):
        self.log += [(self.name, r.item, ref.version) for r in requests]
        return super().advance(requests, ref, steps)


def run(tmp_path, monkeypatch, plan, *, generator=None, another=None, config=CONFIG):
    """Returns the controller, what was trained, who was asked for what, and who was left."""
    monkeypatch.setattr(elastic, "PERIOD", 0.0)
    log = []

    def spec(i):
        return ExecutorSpec(name=f"generator-{i}" if i else "generator", factory=Known, args=(i, log))

    async def go():
        place, controller = await started(
            config,
            generator=generator or (Known, 0, log),
            another=another or spec,
            directory=tmp_path,
            sink=Asking(tmp_path, plan),
        )
        try:
            await controller.run()
            return controller, await controller.trainer.call("history", deadline=5.0), sorted(place._specs)
        finally:
            await place.stop()

    controller, history, left = asyncio.run(asyncio.wait_for(go(), 60))
    controller.intake.admission.audit()
    assert sorted(trained(history)) == list(range(120))
    return controller, log, left


def whats(controller):
    kinds = ("added", "leaving", "removed", "scale refused")
    return [(e.what, e.executor) for e in controller.sink.events if e.what in kinds]


def test_generators_are_added_and_removed_and_every_item_is_trained_once(tmp_path, monkeypatch):
    controller, log, left = run(tmp_path, monkeypatch, {5: 3, 20: 1, 30: 2})
    assert [w for w in whats(controller) if w[0] != "leaving"][:2] == [("added", "generator-1"), ("added", "generator-2")]
    assert set(whats(controller)) >= {("removed", "generator-1"), ("removed", "generator-2")}
    assert whats(controller).count(("added", "generator-1")) == 2
    assert left == ["generator", "generator-1", "rewarder", "trainer"]
    assert {name for name, _, _ in log} == {0, 1, 2}
    assert controller.intake.admission.failures.total() == 0


def test_a_new_generator_begins_at_the_current_version(tmp_path, monkeypatch):
    controller, log, _ = run(tmp_path, monkeypatch, {10: 2})
    first = next(version for name, _, version in log if name == 1)
    assert first >= 10
    (added,) = [e for e in controller.sink.events if e.what == "added"]
    assert added.detail == {"generators": 2}


def test_a_generator_that_leaves_finishes_what_it_was_sent_and_gets_nothing_new(tmp_path, monkeypatch):
    _, log, _ = run(tmp_path, monkeypatch, {3: 2, 20: 1})
    items = [item for _, item, _ in log if item >= 0]
    assert len(items) == len(set(items)), "nothing that was sent to one was sent to another"
    last = max(version for name, _, version in log if name == 1)
    assert last <= 22


def test_a_request_that_was_made_before_the_run_is_followed(tmp_path, monkeypatch):
    elastic.ask(tmp_path, 3)
    controller, _, left = run(tmp_path, monkeypatch, {})
    assert [what for what, _ in whats(controller)] == ["added", "added"]
    assert left == ["generator", "generator-1", "generator-2", "rewarder", "trainer"]


class Reluctant(Generator):
    """Has itself dismissed as soon as it has work, answers nothing, and dies a little later."""

    def __init__(self, directory):
        super().__init__()
        self.directory, self.calls = directory, 0

    def advance(self, requests, ref, steps):
        elastic.ask(self.directory, 1)
        self.calls += 1
        if self.calls == 5:
            raise SystemExit(9)
        return Report(version=ref.version)


def test_the_items_of_a_leaving_generator_that_dies_are_done_by_others_and_it_has_no_successor(tmp_path, monkeypatch):
    def another(i):
        return ExecutorSpec(name=f"generator-{i}", factory=Reluctant, args=(tmp_path,))

    controller, log, left = run(tmp_path, monkeypatch, {2: 2}, another=another)
    assert left == ["generator", "rewarder", "trainer"]
    assert [e.executor for e in controller.sink.events if e.what == "died"] == ["generator-0"]
    assert not [e for e in controller.sink.events if e.what == "respawned"]
    assert len({item for _, item, _ in log if item >= 0}) == 120


def test_a_generator_that_cannot_be_started_is_refused_once_and_the_run_goes_on(tmp_path, monkeypatch):
    def another(i):
        return ExecutorSpec(name=f"generator-{i}", factory=Broken)

    controller, _, left = run(tmp_path, monkeypatch, {5: 2}, another=another)
    assert whats(controller) == [("scale refused", "controller")]
    assert left == ["generator", "rewarder", "trainer"]


class Broken:
    def __init__(self):
        raise ValueError("no memory for this one")


@pytest.mark.parametrize("request_", ["{", "[]", '{"actors": 0}', '{"actors": "2"}', '{"actors": true}'])
def test_a_request_that_makes_no_sense_is_refused_once_and_says_why(tmp_path, monkeypatch, request_):
    (tmp_path / elastic.REQUEST).write_text(request_)
    controller, _, _ = run(tmp_path, monkeypatch, {})
    assert whats(controller) == [("scale refused", "controller")]


def test_a_request_is_written_whole_or_not_at_all(tmp_path):
    elastic.ask(tmp_path, 3)
    elastic.ask(tmp_path, 4)
    assert elastic.asked(tmp_path) == 4
    assert [p.name for p in tmp_path.iterdir()] == [elastic.REQUEST]
    assert json.loads((tmp_path / elastic.REQUEST).read_text()) == {"actors": 4}
