"""`freerun scale` on a run that goes on, in processes."""

import json
import os
import subprocess
import sys

import pytest
from dist.runs import children, command, named, steps, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(400)]


def scale(directory, actors):
    words = [sys.executable, "-m", "freerun.cli", "scale", str(directory), "--actors", str(actors)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_run_gets_a_generator_and_gives_it_back_while_it_goes_on(tmp_path):
    marker, directory = f"freerun-{os.getpid()}-scale", tmp_path / "run"
    settings = ["--control.steps", "3000", "--control.sample_every", "1", "--control.checkpoint_every", "0"]
    run = command(marker, "run", "tiny-faults", "--plain", "--dir", str(directory), "--placement.kind", "monarch", *settings)
    try:
        wait_until(lambda: steps(directory) >= 2, 150)
        assert "asked for 2 generators, now" in scale(directory, 2)
        wait_until(lambda: len(named(marker, "generator-1")) == 1, 100)
        wait_until(lambda: "added" in (directory / "events.jsonl").read_text(), 100)
        scale(directory, 1)
        wait_until(lambda: '"removed"' in (directory / "events.jsonl").read_text(), 100)
        assert named(marker, "generator-1") == []
        run.terminate()
        output = run.communicate(timeout=60)[0]
    finally:
        run.kill()
    assert run.returncode == 130, output
    wait_until(lambda: not children(marker), 15)
    items = [json.loads(line)["item"] for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert len(items) == len(set(items))
    assert "when it is resumed" in scale(directory, 2)
