"""A run that goes on by itself, and what is said and removed when a controller is killed. On scripts that start in a moment."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from freerun.placement import guardian
from freerun.supervise import EXIT_DIED, supervise

pytestmark = [pytest.mark.dist, pytest.mark.timeout(60)]

FREERUN = """
import json, os, signal, sys, time
from pathlib import Path
directory, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
(directory / "config.json").write_text("{}")
with (directory / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[3:]) + "\\n")
end = plan[len((directory / "calls").read_text().splitlines()) - 1]
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "sleeps":
    (directory / "pid").write_text(str(os.getpid()))
    time.sleep(600)
if end == "frozen":
    os.kill(os.getpid(), signal.SIGSTOP)
reason = "ExecutorDied: executor 'trainer' died\\n  given:    process 5 ended" if end else ""
(directory / "summary.json").write_text(json.dumps({"reason": reason}))
sys.exit(end)
"""


class Stand:
    """Runs `supervise` on a stand-in for `freerun` whose attempts end as planned."""

    def __init__(self, directory, *plan):
        (directory / "freerun.py").write_text(FREERUN)
        self.directory, self.said = directory, []
        self.command = [sys.executable, "-I", "-S", str(directory / "freerun.py"), str(directory), json.dumps(plan)]

    def __call__(self, restarts):
        return supervise(self.directory, ["run", "recipe"], restarts, self.said.append, command=self.command)

    @property
    def calls(self):
        return [json.loads(line) for line in (self.directory / "calls").read_text().splitlines()]


def test_a_run_that_died_is_resumed_and_told_why(tmp_path):
    run = Stand(tmp_path, EXIT_DIED, "killed", 0)
    assert run(restarts=5) == 0
    first, second, third = run.calls
    assert first == ["run", "recipe", "--supervised"]
    assert second[:3] == third[:3] == ["resume", str(tmp_path), "--because"]
    assert second[3] == "executor 'trainer' died (process 5 ended)"
    assert "was killed by SIGKILL" in third[3]
    assert ["1 of 5" in run.said[0], "2 of 5" in run.said[1]] == [True, True]


def test_a_run_is_resumed_no_more_often_than_asked_and_then_the_command_is_named(tmp_path):
    run = Stand(tmp_path, *["killed"] * 9)
    assert run(restarts=2) == 128 + signal.SIGKILL
    assert len(run.calls) == 3
    assert f"freerun resume {tmp_path}" in run.said[-1]


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_is_no_death_is_not_resumed(status, tmp_path):
    run = Stand(tmp_path, status, 0)
    assert run(restarts=5) == status
    assert len(run.calls) == 1 and run.said == []


def test_a_controller_that_stands_still_is_killed_and_the_run_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("freerun.placement.processes.FROZEN", 0.2)
    run = Stand(tmp_path, "frozen", 0)
    assert run(restarts=1) == 0
    assert "stopped by a signal" in run.calls[1][3]


def test_a_run_that_left_no_directory_is_begun_again(tmp_path):
    run, script = Stand(tmp_path, "killed", 0), tmp_path / "freerun.py"
    script.write_text(FREERUN.replace('(directory / "config.json").write_text("{}")', ""))
    assert run(restarts=1) == 0
    assert run.calls == [["run", "recipe", "--supervised"]] * 2


PARENT = """
import json, sys
from pathlib import Path
from freerun.supervise import supervise
sys.exit(supervise(Path(sys.argv[1]), ["run"], 3, print, command=json.loads(sys.argv[2])))
"""


def parent(run):
    """The supervisor in a process of its own, once its child sleeps; and the child."""
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(run.directory), json.dumps(run.command)])
    number = run.directory / "pid"
    wait_until(lambda: number.exists() and number.read_text())
    return process, int(number.read_text())


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_an_interrupt_is_passed_on_and_ends_the_run(tmp_path):
    run = Stand(tmp_path, "sleeps", 0)
    process, child = parent(run)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not alive(child)
    assert len(run.calls) == 1


def test_a_run_does_not_outlive_the_process_that_resumes_it(tmp_path):
    process, child = parent(Stand(tmp_path, "sleeps", 0))
    process.kill()
    process.wait()
    wait_until(lambda: not alive(child))


GUARDED = """
import os, signal, sys
from freerun.placement.guardian import Guardian
with Guardian("these were my last words") as guardian:
    guardian.clean(sys.argv[1] + "/weights-*")
    guardian.own(sys.argv[1] + "/folder")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_last_words_are_said_and_files_of_nobody_removed_if_and_only_if_the_parent_was_killed(how, tmp_path):
    for name in ("weights-1", "weights-2", "other"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with (tmp_path / "weights-2").open() as held:
        subprocess.run(["flock", "-n", str(held.fileno())], pass_fds=[held.fileno()], check=True)
        process = subprocess.run(
            [sys.executable, "-c", GUARDED, str(tmp_path), how], stderr=subprocess.PIPE, text=True, check=False
        )
        left = sorted(path.name for path in tmp_path.iterdir())
    assert process.stderr == ("these were my last words\n" if how == "killed" else "")
    assert left == ["other", *([] if how == "killed" else ["weights-1"]), "weights-2"]


def test_a_guardian_kills_what_was_not_released_and_nothing_else():
    sleepers = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    with guardian.Guardian() as other:
        for sleeper in sleepers:
            other.watch_over(sleeper.pid)
        other.release(sleepers[1].pid)
    assert sleepers[0].wait(timeout=20) == -signal.SIGKILL
    assert sleepers[1].poll() is None
    os.killpg(sleepers[1].pid, signal.SIGKILL)
    sleepers[1].wait()
