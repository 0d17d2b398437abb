"""Runs of the command line under Monarch, seen from outside: their processes and their shared memory."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path


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


class Run(subprocess.Popen):
    """A command whose output is read as it comes, since a pipe that nobody reads stops it as soon as it is full."""

    def __init__(self, line: list[str], environment: dict[str, str]) -> None:
        super().__init__(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self._output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.stdout is not None
        with self.stdout:
            self._output = self.stdout.read()

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[str, None]:
        """All that it and whatever it started said, when they have ended: a guardian speaks after its controller."""
        self.wait(timeout)
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._output, None


STEPS, GROUPS = 300, 4
"""Of the run that `start` starts."""


def start(directory: Path, marker: str, *more: str) -> Run:
    """`freerun run tiny-faults` under Monarch, for some seconds."""
    settings = ["--placement.kind", "monarch", "--control.steps", str(STEPS), *more]
    return command(marker, "run", "tiny-faults", "--plain", "--dir", str(directory), *settings)


def start_with_warm_start(directory: Path, marker: str) -> Run:
    """`freerun run tiny-addition` under Monarch, which has a stage before RL."""
    settings = ["--placement.kind", "monarch", "--warm_start.steps", "20", "--control.final_eval_prompts", "32"]
    return command(marker, "run", "tiny-addition", "--plain", "--dir", str(directory), *settings)


def command(marker: str, *words: str) -> Run:
    """`freerun WORDS`, whose processes all carry `marker`."""
    environment = {**os.environ, "FREERUN_TEST_MARKER": marker, "OMP_NUM_THREADS": "1"}
    return Run([sys.executable, "-m", "freerun.cli", *words], environment)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def shared_files() -> set[str]:
    """Those of nobody: other runs, which live, have theirs."""
    named = {p.name: p.name.split("-")[2] for p in Path("/dev/shm").glob("freerun-*-*-*")}
    return {name for name, owner in named.items() if not Path(f"/proc/{owner}").exists()}


def steps(directory: Path) -> int:
    """Steps that the run has recorded."""
    log = directory / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def named(marker: str, name: str) -> list[int]:
    """Processes of the run that are home to the executor `name`."""
    return [pid for pid in children(marker) if Path(f"/proc/{pid}/comm").read_text().strip() == name[:15]]
