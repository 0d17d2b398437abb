"""What somebody sees who makes data sets where there is no terminal."""

import io

import pytest
from rich.console import Console

from freerun import dataset_cli
from freerun.tasks import grades


def test_without_a_terminal_every_tenth_of_the_making_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, *, seed: int, progress: grades.Progress) -> None:
        for step in range(101):
            progress(f"training SAC on {name}, return {step}", step / 100)
        progress("playing the policies", 0.0)

    monkeypatch.setattr(grades, "make", make)
    out = io.StringIO()
    dataset_cli.make("pendulum", 0, Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[3] == " 30% training SAC on pendulum, return 30"
    assert lines[-1] == "  0% playing the policies"
