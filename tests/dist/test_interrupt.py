"""A run that is interrupted leaves no process and no shared memory, whenever it happens."""

import os
import signal

import pytest
from dist.runs import children, shared_files, start, start_with_warm_start, steps, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("moment", ["importing", "spawning", "warm start", "training"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(moment, number, tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-{moment}-{number}", shared_files(), tmp_path / "run"
    run = (start_with_warm_start if moment == "warm start" else start)(directory, marker)
    reached = {
        "importing": lambda: True,
        "spawning": lambda: len(children(marker)) >= 3,
        "warm start": lambda: (
            "warm-start" in (directory / "events.jsonl").read_text() if (directory / "events.jsonl").exists() else False
        ),
        "training": lambda: steps(directory) >= 2,
    }[moment]
    try:
        wait_until(reached, 150)
        run.send_signal(number)
        output = run.communicate(timeout=90)[0]
    finally:
        run.kill()
    assert run.returncode != 0
    if moment == "training":
        assert "freerun resume" in output
    wait_until(lambda: not children(marker), 15)
    assert shared_files() <= before


def test_a_killed_controller_leaves_no_process_and_no_memory(tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-killed", shared_files(), tmp_path / "run"
    run = start(directory, marker)
    wait_until(lambda: steps(directory) >= 2, 150)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=10)
    wait_until(lambda: not children(marker), 20)
    assert shared_files() <= before
