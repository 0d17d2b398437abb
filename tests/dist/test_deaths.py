"""Executors and controllers that are killed for real: what is healed, what is resumed, and what is left behind."""

import json
import os
import signal

import psutil
import pytest
from dist.runs import GROUPS, STEPS, children, command, named, shared_files, start, steps, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(400)]


def events(directory, what):
    return [row for row in map(json.loads, (directory / "events.jsonl").read_text().splitlines()) if row["what"] == what]


@pytest.mark.parametrize("name", ["generator", "rewarder"])
def test_a_killed_executor_is_named_and_replaced_within_seconds_and_the_run_goes_on(name, tmp_path):
    marker, directory = f"freerun-{os.getpid()}-{name}", tmp_path / "run"
    run = start(directory, marker)
    try:
        wait_until(lambda: steps(directory) >= 2, 150)
        (pid,) = named(marker, name)
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=200)[0]
    finally:
        run.kill()
    assert run.returncode == 0, output
    assert steps(directory) == STEPS
    (died,), (again,) = events(directory, "died"), events(directory, "respawned")
    assert died["executor"] == again["executor"] == name
    # Noticed by the kernel at once; what takes time is the start of a process that imports torch.
    assert again["end"] - died["end"] < 60
    items = list(map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()))
    assert items[-1]["metrics"]["items/trained"] == STEPS * GROUPS
    wait_until(lambda: not children(marker), 15)


def test_a_killed_trainer_ends_the_attempt_with_its_name_and_the_resume_command(tmp_path):
    marker, directory = f"freerun-{os.getpid()}-trainer", tmp_path / "run"
    run = start(directory, marker)
    try:
        wait_until(lambda: steps(directory) >= 2, 150)
        (pid,) = named(marker, "trainer")
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=60)[0]
    finally:
        run.kill()
    assert run.returncode == 3
    assert output.count("executor 'trainer' died") == output.count("error:") == 1
    assert f"process {pid} ended" in output
    assert f"freerun resume {directory}" in output
    wait_until(lambda: not children(marker), 15)


def test_a_killed_controller_is_said_to_have_died_with_the_resume_command_and_leaves_nothing(tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-words", shared_files(), tmp_path / "run"
    run = start(directory, marker)
    wait_until(lambda: steps(directory) >= 2, 150)
    run.send_signal(signal.SIGKILL)
    output = run.communicate(timeout=20)[0]
    assert output.count(f"controller (process {run.pid}) was killed or crashed; go on with: freerun resume {directory}") == 1
    wait_until(lambda: not children(marker), 15)
    assert shared_files() <= before


@pytest.mark.parametrize("name", ["trainer", "controller"])
def test_with_restarts_a_run_whose_trainer_or_controller_died_goes_on_by_itself(name, tmp_path):
    marker, directory = f"freerun-{os.getpid()}-restarts-{name}", tmp_path / "run"
    run = start(directory, marker, "--restarts", "1", "--control.checkpoint_every", "4")
    try:
        wait_until(lambda: steps(directory) >= 6, 150)
        (pid,) = named(marker, "trainer") if name == "trainer" else supervised(run.pid)
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=300)[0]
    finally:
        run.kill()
    assert run.returncode == 0, output
    assert output.count("resuming, 1 of 1 times") == 1
    summary = json.loads((directory / "summary.json").read_text())
    first, second = json.loads((directory / "environment.json").read_text())["attempts"]
    assert (summary["outcome"], summary["attempts"], "because" in first) == ("finished", 2, False)
    assert (f"executor '{name}' died" if name == "trainer" else f"process {pid}) was killed by SIGKILL") in second["because"]
    rows = list(map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    wait_until(lambda: not children(marker), 15)


def supervised(parent):
    """The controller that a supervisor looks after."""
    children = [p for p in psutil.Process(parent).children() if "--supervised" in p.cmdline()]
    return [process.pid for process in children]


def test_a_killed_controller_resumes_with_every_finished_group(tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-controller", shared_files(), tmp_path / "run"
    run = start(directory, marker, "--control.checkpoint_every", "40")
    wait_until(lambda: steps(directory) >= 50, 150)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=10)
    wait_until(lambda: not children(marker), 20)
    since = steps(directory) - max(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").glob("step-*"))
    again = command(marker, "resume", str(directory), "--plain")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    rows = list(map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["metrics"]["items/trained"] == STEPS * GROUPS
    # Groups of the steps since the checkpoint had been finished. Those that already were at the checkpoint are in it, at most
    # as many as there are slots, which are those of two steps; all others come from the journal.
    assert sum(row["metrics"].get("items/used/recalled", 0) for row in rows) >= (since - 2) * GROUPS > 0
    wait_until(lambda: not children(marker), 15)
    assert shared_files() <= before
