"""Control runs in processes of their own: actors and controllers that are killed for real."""

import json
import os
import signal

import pytest
from dist.runs import children, command, named, shared_files, steps, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(400)]

SETTINGS = ["--placement.kind", "monarch", "--control.final_eval_episodes", "2", "--control.evaluations", "2"]


def start(recipe: str, directory, marker: str, *more: str):
    return command(marker, "run", recipe, "--plain", "--dir", str(directory), *SETTINGS, *more)


def rows(directory) -> list[dict]:
    return [json.loads(line)["metrics"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory, what: str) -> list[dict]:
    return [row for row in map(json.loads, (directory / "events.jsonl").read_text().splitlines()) if row["what"] == what]


@pytest.mark.parametrize(("recipe", "name"), [("cartpole-ppo", "actor"), ("pendulum-sac", "actor"), ("pendulum-sac", "judge")])
def test_a_killed_actor_is_replaced_and_the_run_collects_what_it_asked_for(recipe, name, tmp_path):
    marker, directory = f"freerun-{os.getpid()}-{recipe}-{name}", tmp_path / "run"
    run = start(recipe, directory, marker)
    try:
        wait_until(lambda: steps(directory) >= 2, 150)
        (pid,) = named(marker, name)
        os.kill(pid, signal.SIGKILL)
        output = run.communicate(timeout=300)[0]
    finally:
        run.kill()
    assert run.returncode == 0, output
    (died,), (again,) = events(directory, "died"), events(directory, "respawned")
    assert died["executor"] == again["executor"] == name
    asked = {"cartpole-ppo": 60_416, "pendulum-sac": 12_000}[recipe]
    assert rows(directory)[-1]["env/total"] == asked
    wait_until(lambda: not children(marker), 15)


def test_a_killed_controller_resumes_from_its_checkpoint_and_finishes(tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-control", shared_files(), tmp_path / "run"
    run = start("pendulum-sac", directory, marker, "--control.checkpoint_every", "20")
    wait_until(lambda: (directory / "checkpoints").exists() and steps(directory) >= 50, 200)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=10)
    wait_until(lambda: not children(marker), 20)
    again = command(marker, "resume", str(directory), "--plain")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    made = rows(directory)
    assert made[-1]["env/total"] == 12_000
    # One for each environment step after the first 1000, which are 32 whole chunks of 32 steps.
    assert sum(row["updates"] for row in made) == 12_000 - 32 * 32
    wait_until(lambda: not children(marker), 15)
    assert shared_files() <= before
