"""Runs on a disk that fills up, refuses to write or is read-only: a file system of its own, in a mount namespace of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = """
import asyncio, json, os, resource, subprocess, sys
from pathlib import Path

from freerun import config as configs
from freerun.checkpoint import JOURNAL, Checkpoints
from freerun.errors import CheckpointError, RunDirectoryError
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.rundir import RunDirectory, read_log
from freerun.store.journal import mend
from test_runs import small

disk, kind = Path(sys.argv[1]), sys.argv[2]
directory, filler = disk / "run", disk / "filler"
config = small(control={"steps": 12, "checkpoint_every": 2, "eval_every": 0, "final_eval_prompts": 0}, warm_start=None)


class Hurt:
    # When a step is recorded, fills the disk but for `number` pages, or has it refuse every write from step `number` on.

    def __init__(self, number):
        self.number = number

    def step(self, record):
        if record.step == 5 and kind == "full":
            free = os.statvfs(disk)
            filler.write_bytes(bytes(max(0, free.f_bavail - self.number) * free.f_bsize))
        if record.step == self.number and kind == "refuses":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if record.step == self.number and kind == "read-only":
            raise KeyboardInterrupt

    def event(self, record): ...

    sample = evaluation = status = event

    def close(self): ...


def run(*hurt):
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoint = checkpoints.newest_whole()[0] if checkpoints.all() else None
    if (directory / "config.json").exists():
        files = RunDirectory.resume(directory, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        mend(directory / JOURNAL)
    else:
        files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([files, *hurt])
    try:
        return asyncio.run(launch(config, directory, sinks, checkpoint=checkpoint, resume=True, began=files.elapsed))
    finally:
        sinks.close()


def story(number):
    told = ""
    try:
        run(Hurt(number))
    except (CheckpointError, RunDirectoryError) as error:
        told = str(error)
    except KeyboardInterrupt:  # with nothing open for writing, a disk can be made read-only
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            run()
        except RunDirectoryError as error:
            told = str(error)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    filler.unlink(missing_ok=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    committed = [p.name for p in Checkpoints(directory / "checkpoints").all()]
    newest, passed = Checkpoints(directory / "checkpoints").newest_whole()
    finished = run().finished
    rows, samples = (read_log(directory / name).rows for name in ("metrics.jsonl", "samples.jsonl"))
    left = sorted(p.name for p in (*directory.iterdir(), *(directory / "checkpoints").iterdir()))
    return {
        "told": told,
        "committed": committed,
        "newest": newest.name,
        "passed": passed,
        "finished": finished,
        "steps": [row["step"] for row in rows],
        "items": [row["item"] for row in samples],
        "left": [name for name in left if name[0] == "." or "lock" in name or "compacting" in name],
    }


for number in map(int, sys.argv[3:]):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    print(json.dumps({"number": number, **story(number)}), flush=True)
    subprocess.run(["umount", str(disk)], check=True)
"""

COMMANDS = """
import os, resource, subprocess, sys
from pathlib import Path

from freerun import cli
from freerun.errors import ExecutorDied
from freerun.rundir import RunDirectory

disk, kind, directory, *more = Path(sys.argv[1]), *sys.argv[2:]
recipe = disk.parent / "recipe.py"
recipe.write_text(
    "from test_runs import small\\n"
    "def recipe():\\n"
    "    return small(control={'steps': 8, 'checkpoint_every': 2, 'final_eval_prompts': 0}, warm_start=None)\\n"
)
written = RunDirectory.step


def hurt(files, record):
    if record.step == 5 and kind == "full":
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
    if record.step == 5 and kind in ("refuses", "died"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    if record.step == 5 and kind == "died":
        raise ExecutorDied("executor 'trainer' died", given="process 5 ended", expected="a living one", todo="look")
    if record.step == 5 and kind == "read-only":
        raise KeyboardInterrupt
    written(files, record)


RunDirectory.step = hurt
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
words = ["run", str(recipe), "--plain", "--dir", directory, *more]
if kind == "read-only":
    try:
        cli.main(words)
    except SystemExit:
        print("-- resumed", file=sys.stderr, flush=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    words = ["resume", directory, "--plain"]
cli.main(words)
"""


def in_a_namespace(tmp_path, script, *arguments):
    """What a script wrote that may mount file systems, on `tmp_path / "disk"`."""
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "disk").mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], check=False).returncode != 0:
        pytest.skip("this machine gives no mount namespace to a user")
    command = [*namespace, sys.executable, str(tmp_path / "script.py"), str(tmp_path / "disk"), *arguments]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def stories(tmp_path, kind, *numbers):
    """What came of a run whose disk was hurt, and of its resumption, for each number."""
    done = in_a_namespace(tmp_path, SCRIPT, kind, *map(str, numbers))
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(story, *, hurt):
    """Nothing that was committed is lost, and nothing is repeated."""
    assert story["finished"]
    assert story["steps"] == list(range(1, 13))
    assert sorted(story["items"]) == list(range(36))
    assert story["passed"] == []
    assert story["newest"] == story["committed"][-1]
    assert story["left"] == []
    if hurt:
        assert "to do:    make room" in story["told"] or "to do:    check the path" in story["told"], story["told"]


def test_a_disk_that_fills_up_ends_the_run_by_name_and_costs_nothing_that_was_committed(tmp_path):
    for story in stories(tmp_path, "full", 0, 1, 2, 4, 8, 16, 24, 48):
        check(story, hurt=story["number"] < 24)


@pytest.mark.parametrize("kind", ["refuses", "read-only"])
def test_a_disk_that_cannot_be_written_to_ends_the_run_by_name_and_costs_nothing_that_was_committed(kind, tmp_path):
    for story in stories(tmp_path, kind, 3, 4, 7):
        check(story, hurt=True)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("full", "(RunDirectory|Checkpoint)Error: .*could not be written"),
        ("refuses", "(RunDirectory|Checkpoint)Error: .*could not be written"),
        ("read-only", "RunDirectoryError: .*could not be resumed"),
        ("died", "ExecutorDied: executor 'trainer' died"),
    ],
)
def test_a_bad_disk_ends_a_run_with_one_message_and_the_whole_command_to_go_on_with(kind, what, tmp_path):
    """Also where the disk keeps the records and the report of the end from being written: that is no news beside its cause."""
    directory = tmp_path / "disk" / ("a-name-that-is-longer-than-a-terminal-is-wide-" * 2)
    done = in_a_namespace(tmp_path, COMMANDS, kind, str(directory))
    told = done.stderr.rpartition("-- resumed")[2]
    assert done.returncode == (3 if kind == "died" else 1), done.stderr
    assert told.count("error:") == 1 and "Traceback" not in told and re.search(f"error: {what}", told), told
    assert [line for line in told.splitlines() if line.endswith(f"go on with: freerun resume {directory}")], told


def test_a_full_disk_says_the_command_to_go_on_with_where_a_run_resumes_by_itself_after_deaths_only(tmp_path):
    directory = tmp_path / "disk" / "run"
    done = in_a_namespace(tmp_path, COMMANDS, "full", str(directory), "--supervised")
    assert done.returncode == 1, done.stderr
    assert f"go on with: freerun resume {directory}" in done.stderr
