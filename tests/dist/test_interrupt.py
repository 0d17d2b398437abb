"""A run that is interrupted leaves no process and no shared memory, whenever it happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]


def children(marker: str) -> list[int]:
    """Processes that carry `marker` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                marker.encode() in (folder / "environ").read_bytes()
                and "Z" not in (folder / "stat").read_text().split(") ")[1][:1]
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def start(directory: Path, marker: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "freerun.cli",
        "run",
        "tiny-addition",
        "--plain",
        "--dir",
        str(directory),
        "--placement.kind",
        "monarch",
        "--warm_start.steps",
        "20",
        "--control.final_eval_prompts",
        "32",
    ]
    environment = {**os.environ, "FREERUN_TEST_MARKER": marker, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def shared_files() -> set[str]:
    return {p.name for p in Path("/dev/shm").glob("freerun-*")}


@pytest.mark.parametrize("moment", ["importing", "spawning", "warm start", "training"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(moment, number, tmp_path):
    marker, before, directory = f"freerun-{os.getpid()}-{moment}-{number}", shared_files(), tmp_path / "run"
    run = start(directory, marker)
    reached = {
        "importing": lambda: True,
        "spawning": lambda: len(children(marker)) >= 3,
        "warm start": lambda: (
            "warm-start" in (directory / "events.jsonl").read_text() if (directory / "events.jsonl").exists() else False
        ),
        "training": lambda: (
            (directory / "metrics.jsonl").exists() and (directory / "metrics.jsonl").read_text().count("\n") >= 2
        ),
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


def test_a_killed_controller_leaves_no_process_and_the_next_run_sweeps_its_memory(tmp_path):
    marker, directory = f"freerun-{os.getpid()}-killed", tmp_path / "run"
    run = start(directory, marker)
    wait_until(
        lambda: (directory / "metrics.jsonl").exists() and (directory / "metrics.jsonl").read_text().count("\n") >= 2, 150
    )
    run.send_signal(signal.SIGKILL)
    run.wait(timeout=10)
    wait_until(lambda: not children(marker), 20)
    from freerun.weights.shared import sweep

    sweep()
    assert not shared_files()
