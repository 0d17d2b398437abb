"""Runs of control that are hurt: who died is started anew, and a checkpoint holds what was done until then. On `line.py`."""

import asyncio
import json
import os
import signal

import pytest
import torch
from fakes import Records
from line import walking

from freerun.actors.collector import Collector
from freerun.checkpoint import MANIFEST, Checkpoints, _seal
from freerun.encoding import decode_chunk, encode_chunk
from freerun.errors import CheckpointError, ExecutorDied
from freerun.launch_control import launch_control
from freerun.placement.calls import late
from freerun.store.phases import Phase
from freerun.transitions import Chunk


def run(config, directory, *, sink=None, resume=False):
    """The outcome, and the records."""
    sink = sink or Records()
    checkpoint = Checkpoints(directory / "checkpoints").newest_whole()[0] if resume else None
    work = launch_control(config, directory, sink, checkpoint=checkpoint, resume=resume)
    return asyncio.run(asyncio.wait_for(work, 60)), sink


def events(records, what):
    return [event for event in records.events if event.what == what]


def dies(monkeypatch, method, calls, error=None):
    """Executors exit, or raise `error`, in calls of `method` with these numbers, counted over all executors."""
    real, count = getattr(Collector, method), iter(range(1, 1000))

    def failing(self, *args):
        if next(count) in calls:
            raise error or SystemExit(9)
        return real(self, *args)

    monkeypatch.setattr(Collector, method, failing)


@pytest.mark.parametrize("kind", ["rollouts", "replay"])
@pytest.mark.parametrize(("method", "name"), [("collect", "actor"), ("save", "actor"), ("judge", "judge")])
def test_an_actor_that_dies_is_started_anew_and_the_run_comes_to_its_end(kind, method, name, tmp_path, monkeypatch):
    dies(monkeypatch, method, {2})
    outcome, records = run(walking(kind), tmp_path)
    assert outcome.finished and outcome.step == outcome.total_steps > 0
    assert [(e.executor, "exit status 9" in e.detail["how"]) for e in events(records, "died")] == [(name, True)]
    assert [e.executor for e in events(records, "respawned")] == [name]
    assert written(tmp_path)[1] == 12


def test_an_actor_that_dies_too_often_ends_the_run_by_name(tmp_path, monkeypatch):
    dies(monkeypatch, "collect", range(2, 1000))
    with pytest.raises(ExecutorDied, match="'actor' died 3 times"):
        run(walking(executor_restarts=2), tmp_path)


@pytest.mark.parametrize(("method", "name"), [("collect", "actor"), ("judge", "judge")])
def test_an_actor_that_does_not_answer_counts_as_dead_and_says_how_long_it_was_waited_for(method, name, tmp_path, monkeypatch):
    dies(monkeypatch, method, {2}, late(name, method, 600.0))
    outcome, records = run(walking(), tmp_path)
    assert outcome.finished and written(tmp_path)[1] == 12
    assert [(e.executor, e.detail) for e in events(records, "died")] == [(name, {"how": "still busy after 600 s"})]
    assert [e.executor for e in events(records, "respawned")] == [name]


class Interrupting(Records):
    """Interrupts the run when so many environment steps were taken."""

    def __init__(self, chunks):
        super().__init__()
        self.chunks = chunks

    def status(self, record):
        super().status(record)
        if record.items["stored"] == self.chunks:
            self.chunks = -1
            os.kill(os.getpid(), signal.SIGINT)


def written(directory):
    """What the newest checkpoint says, and which file it is."""
    path = Checkpoints(directory / "checkpoints").all()[-1]
    counts = json.loads((path / "controller.json").read_text())["collection"]["counts"]
    return path.name, counts["finished"], (path / MANIFEST).stat().st_ino


def test_a_checkpoint_of_a_step_is_written_again_if_and_only_if_more_was_collected(tmp_path):
    config = walking("replay", phases=(Phase(env_steps=48, utd=0.0),), final_eval_episodes=0)
    outcome, _ = run(config, tmp_path, sink=Interrupting(3))
    assert not outcome.finished
    first = written(tmp_path)
    assert first[0] == "step-00000000" and 3 <= first[1] < 12
    outcome, _ = run(config, tmp_path, resume=True)
    second = written(tmp_path)
    assert outcome.finished and second[:2] == ("step-00000000", 12)
    run(config, tmp_path, resume=True)
    assert written(tmp_path) == second


def test_what_killed_attempts_left_beside_the_checkpoints_goes(tmp_path):
    left = tmp_path / "checkpoints" / ".attempt-00000003-1"
    left.mkdir(parents=True)
    run(walking(), tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("kind", ["rollouts", "replay"])
def test_a_newest_checkpoint_that_is_damaged_is_set_aside_and_the_one_before_is_used(kind, tmp_path):
    config = walking(kind)
    outcome, _ = run(config, tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").all()[-1]
    (newest / "controller.json").write_text("{")
    again, records = run(config, tmp_path, resume=True)
    assert again.finished and again.step == outcome.step
    assert 0 < records.steps[0].step < again.step
    assert not list((tmp_path / "checkpoints").glob("damaged-*")), "the next checkpoint that is written ends its keeping"


@pytest.mark.parametrize("kind", ["rollouts", "replay"])
@pytest.mark.parametrize("state", [[], {}, {"step": 3, "phase": 0, "updates": 0, "trials": [{}], "collection": {}}])
def test_a_whole_checkpoint_whose_state_is_of_something_else_is_refused(kind, state, tmp_path):
    run(walking(kind), tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").all()[-1]
    (newest / "controller.json").write_text(json.dumps(state))
    (newest / MANIFEST).unlink()
    _seal(newest)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run(walking(kind), tmp_path, resume=True)


def test_bytes_that_are_no_chunk_are_refused():
    columns = {"obs": torch.ones(2, 1, 3), "action": torch.zeros(2, 1, dtype=torch.int64)}
    whole = encode_chunk(Chunk(item=3, actor=0, columns=columns, oldest_version=1))
    assert torch.equal(decode_chunk(whole).columns["obs"], columns["obs"])
    for size in range(len(whole)):
        with pytest.raises(CheckpointError, match="not one of a chunk"):
            decode_chunk(whole[:size])
    with pytest.raises(CheckpointError, match="not one of a chunk"):
        decode_chunk(whole.replace(b"int64", b"int63"))
