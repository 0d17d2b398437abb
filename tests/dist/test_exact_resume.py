"""In deterministic mode a run that is killed at any moment and resumed is, bit for bit, the run that was not.

A run is forked off, so that nothing has to be imported again, and killed at its so many-th call of a Python function.
"""

import asyncio
import os
import random
import signal
import sys

import pytest
import torch
from test_runs import learning, small, weights

from freerun import config as configs
from freerun.algorithms.language import grpo
from freerun.checkpoint import JOURNAL, Checkpoints
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.rundir import RunDirectory, read_log
from freerun.store.journal import mend

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]

TRIALS = int(os.environ.get("FREERUN_KILLS", "4"))
"""Kill points of each setting."""


def run_or_resume(config, directory):
    """What `freerun run` and `freerun resume` do, in this process."""
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoint = checkpoints.newest_whole()[0] if checkpoints.all() else None
    begun = (directory / "config.json").exists()
    if begun:
        files = RunDirectory.resume(directory, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        mend(directory / JOURNAL)
    else:
        files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([files])
    try:
        asyncio.run(launch(config, directory, sinks, checkpoint=checkpoint, resume=begun, began=files.elapsed))
    finally:
        sinks.close()


def forked(config, directory, last=None):
    """Do it in a child that kills itself at its call number `last`; its exit status. Without it, the number of calls is left in
    a file beside the directory."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.setprofile(count)
        run_or_resume(config, directory)
        sys.setprofile(None)
        if last is None:
            directory.with_suffix(".calls").write_text(str(calls))
        status = 0
    finally:
        os._exit(status)


def unbroken(config, directory):
    assert forked(config, directory) == 0
    return int(directory.with_suffix(".calls").read_text()), records(directory)


def records(directory):
    return learning(read_log(directory / "metrics.jsonl").rows), weights(directory)


def evaluations(directory):
    return [(row["step"], row["split"], row["accuracy"]) for row in read_log(directory / "evals.jsonl").rows]


SETTINGS = {
    "no lag": {"control": {"max_lag": 0, "window": 1}},
    "lag 1": {"control": {"max_lag": 1, "window": 1}},
    "lag 2, window, replay": {"control": {"max_lag": 2, "window": 4, "replay": 2}},
    "published every second step": {"control": {"max_lag": 2, "publish_every": 2, "window": 2, "stream": 3}},
    "credit that remembers, two minibatches": {"control": {"max_lag": 1}, "algorithm": grpo.Config()},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_any_moment_and_resumed_a_serial_run_equals_the_unbroken_one_bit_for_bit(setting, tmp_path):
    changes = SETTINGS[setting]
    control = {"steps": 7, "checkpoint_every": 2, "eval_every": 2, **changes["control"]}
    config = small(**{**changes, "control": control})
    torch.set_num_threads(1)
    calls, (rows, expected) = unbroken(config, tmp_path / "whole")
    draw = random.Random(setting)
    for trial in range(TRIALS):
        directory, kills = tmp_path / f"broken-{trial}", []
        while True:
            last = draw.randrange(1, calls) if len(kills) < 3 else None
            status = forked(config, directory, last)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            kills.append(last)
        again, found = records(directory)
        assert again == rows, f"killed at calls {kills}"
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), f"killed at calls {kills}"
        assert evaluations(directory) == evaluations(tmp_path / "whole"), f"killed at calls {kills}"
