"""Runs of control in processes, whose processes are killed: nothing is left, who can be is started anew, and `--restarts` goes
on by itself. On `line.py`."""

import json
import os
import signal
from pathlib import Path

import pytest
from dist.runs import children, command, named, shared_files, steps, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(400)]

RECIPE = '''"""Walks along a line, taking its time."""
from line import walking
from freerun.store.phases import Phase

def recipe():
    return walking(seconds=0.02, phases=(Phase(env_steps=240),))
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A file that `freerun run` takes, whose environment every process can import."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    file = tmp_path / "walk.py"
    file.write_text(RECIPE)
    return str(file)


def walk(recipe, directory, marker, *more):
    words = ["run", recipe, "--plain", "--dir", str(directory), "--placement.kind", "monarch", *more]
    return command(marker, *words)


def rows(directory, log="metrics"):
    return list(map(json.loads, (directory / f"{log}.jsonl").read_text().splitlines()))


def test_a_killed_actor_is_replaced_and_the_run_comes_to_its_end(recipe, tmp_path):
    marker, directory = f"freerun-{os.getpid()}-actor", tmp_path / "run"
    run = walk(recipe, directory, marker)
    try:
        wait_until(lambda: steps(directory) >= 4, 150)
        (pid,) = named(marker, "actor")
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=200)[0]
    finally:
        run.kill()
    assert run.returncode == 0, output
    (died,) = [event for event in rows(directory, "events") if event["what"] == "died"]
    assert died["executor"] == "actor" and f"process {pid} ended" in died["detail"]["how"]
    assert [row["step"] for row in rows(directory)] == list(range(1, 61))
    wait_until(lambda: not children(marker), 15)


def test_a_killed_controller_says_how_to_go_on_leaves_nothing_and_the_run_goes_on(recipe, tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-control", shared_files(), tmp_path / "run"
    run = walk(recipe, directory, marker)
    wait_until(lambda: steps(directory) >= 4, 150)
    run.send_signal(signal.SIGKILL)
    output = run.communicate(timeout=20)[0]
    assert output.count(f"controller (process {run.pid}) was killed or crashed; go on with: freerun resume {directory}") == 1
    wait_until(lambda: not children(marker), 15)
    assert shared_files() <= before
    again = command(marker, "resume", str(directory), "--plain")
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    assert [row["step"] for row in rows(directory)] == list(range(1, 61))


def test_with_restarts_a_run_whose_trainer_died_goes_on_by_itself(recipe, tmp_path):
    marker, directory = f"freerun-{os.getpid()}-trainer", tmp_path / "run"
    run = walk(recipe, directory, marker, "--restarts", "1")
    try:
        wait_until(lambda: steps(directory) >= 4, 150)
        (pid,) = named(marker, "trainer")
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=300)[0]
    finally:
        run.kill()
    assert run.returncode == 0, output
    assert output.count("resuming, 1 of 1 times") == 1
    summary = json.loads((directory / "summary.json").read_text())
    attempts = json.loads((directory / "environment.json").read_text())["attempts"]
    assert (summary["outcome"], summary["attempts"], len(attempts)) == ("finished", 2, 2)
    assert f"executor 'trainer' died (process {pid} ended" in attempts[1]["because"]
    assert [row["step"] for row in rows(directory)] == list(range(1, 61))
    wait_until(lambda: not children(marker), 15)
