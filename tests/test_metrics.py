"""The names of metrics, the fan-out to sinks, and the run directory: locks, resumes, torn lines, full disks."""

import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freerun.environment import environment
from freerun.errors import ConfigError, RunDirectoryError
from freerun.metrics import METRICS, EvalRecord, Event, Fanout, SampleRecord, Status, StepRecord, TrialRecord, describe, plain
from freerun.rundir import RunDirectory, jsonable, read_log
from freerun.runlock import LOCK, process_start
from freerun.types import Histogram, Max, Mean, Sum


def a_step(step: int, **metrics: float) -> StepRecord:
    return StepRecord(step=step, version=step, seconds=10.0 * step, metrics={"reward/mean": 0.1 * step, **metrics})


def a_sample(step: int, item: int = 0, completion: str = "4") -> SampleRecord:
    return SampleRecord(
        step=step,
        item=item,
        uid="2+2",
        prompt="2+2=",
        completion=completion,
        reward=1.0,
        oldest=step - 1,
        newest=step - 1,
        lag=0,
        stop="eos",
    )


def an_eval(step: int, accuracy: float = 0.5) -> EvalRecord:
    return EvalRecord(step=step, split="heldout", accuracy=accuracy, count=64, oldest=step, newest=step, seconds=10.0 * step)


def a_span(start: float, end: float) -> Event:
    return Event(executor="trainer", what="train", start=start, end=end)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory.create(tmp_path / "run", {"steps": 3})
    yield directory
    directory.close()


# --- names -------------------------------------------------------------------------------------------------------------------


def test_plain_gives_each_kind_of_metric_its_value_in_order_of_names() -> None:
    merged = {
        "reward/mean": Mean(3.0, 2.0),
        "lag/max": Max(2.0),
        "lag/tokens": Histogram({1: 5.0, 0: 2.0}),
        "tokens/trained": Sum(7.0),
    }
    assert plain(merged) == {"lag/max": 2.0, "lag/tokens": {0: 2.0, 1: 5.0}, "reward/mean": 1.5, "tokens/trained": 7.0}
    assert list(plain(merged)) == sorted(merged)


def test_a_metric_that_the_table_lacks_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="grad_norm"):
        plain({"grad_nrom": Mean(1.0, 1.0)})


@pytest.mark.parametrize("name", ["loss/policy", "idle/generator-0", "items/dropped/timeout", "response/stop/eos"])
def test_a_name_with_a_free_part_is_described_by_its_pattern(name: str) -> None:
    assert describe(name) in METRICS.values()


def test_of_two_patterns_that_fit_the_more_special_one_describes() -> None:
    assert describe("items/dropped/timeout") is METRICS["items/dropped/<reason>"]
    assert describe("reward/format/strict") is METRICS["reward/<part>"], "users name the parts of their rewards as they like"


@pytest.mark.parametrize("name", ["loss/", "loss", "", "LOSS/policy"])
def test_a_free_part_is_never_empty(name: str) -> None:
    with pytest.raises(ConfigError):
        describe(name)


def test_fanout_closes_every_sink_even_if_one_raises() -> None:
    closed = []

    class Closing:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise OSError("b")

    with pytest.raises(OSError, match="b"):
        Fanout([Closing("a"), Closing("b"), Closing("c")]).close()
    assert closed == ["a", "b", "c"]


# --- what is written ---------------------------------------------------------------------------------------------------------


def test_every_record_is_on_disk_when_the_call_that_records_it_returns(run: RunDirectory) -> None:
    run.step(a_step(1))
    run.event(a_span(0.0, 10.0))
    run.evaluation(an_eval(1))
    run.sample(a_sample(1))
    run.status(Status(step=1, total_steps=3, seconds=10.0, executors={}))
    assert {n: len(read_log(run.path / f"{n}.jsonl").rows) for n in ("metrics", "events", "evals", "samples")} == {
        "metrics": 1,
        "events": 1,
        "evals": 1,
        "samples": 1,
    }


def test_a_number_that_is_not_finite_is_written_as_a_string_so_that_the_line_is_json(run: RunDirectory) -> None:
    run.step(a_step(1, grad_norm=float("nan"), lr=float("inf")))
    row = json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["metrics"] == {"reward/mean": 0.1, "grad_norm": "nan", "lr": "inf"}


def test_config_and_environment_are_written_at_the_start(run: RunDirectory) -> None:
    assert json.loads((run.path / "config.json").read_text()) == {"steps": 3}
    attempt = json.loads((run.path / "environment.json").read_text())["attempts"][0]
    assert {"torch", "transformers"} <= attempt["packages"].keys()
    assert attempt["python"] and attempt["cpu"] and attempt["cores"] >= attempt["cores_allowed"] >= 1


def test_the_environment_names_the_commit_of_a_source_tree() -> None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert environment()["commit"].removesuffix("+changes") in (head, "")


def test_the_summary_says_how_the_run_ended(run: RunDirectory) -> None:
    run.evaluation(an_eval(0, 0.25))
    run.step(a_step(1))
    run.evaluation(an_eval(1, 0.75))
    run.finish("finished")
    run.close()
    summary = json.loads((run.path / "summary.json").read_text())
    assert (summary["outcome"], summary["step"], summary["seconds"]) == ("finished", 1, 10.0)
    assert [summary["heldout"]["heldout"][end]["accuracy"] for end in ("first", "last")] == [0.25, 0.75]
    assert not (run.path / LOCK).exists()


def test_a_run_that_nobody_finished_is_unfinished_and_closing_twice_changes_nothing(run: RunDirectory) -> None:
    run.close()
    run.finish("finished")
    run.close()
    assert json.loads((run.path / "summary.json").read_text())["outcome"] == "unfinished"


def test_samples_stay_below_their_bound_and_spread_evenly_over_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {}, max_sample_bytes=4000)
    for step in range(1, 401):
        run.sample(a_sample(step))
        assert (run.path / "samples.jsonl").stat().st_size <= 4000
    steps = [row["step"] for row in read_log(run.path / "samples.jsonl").rows]
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert len(gaps) == 1 and steps[0] == 1 and steps[-1] > 300 and len(steps) >= 8
    run.close()
    assert json.loads((run.path / "summary.json").read_text())["samples"] == {"seen": 400, "one_kept_of": gaps.pop()}


def test_a_sample_larger_than_the_bound_does_not_hang_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {}, max_sample_bytes=100)
    for step in (1, 2, 3):
        run.sample(a_sample(step, completion="x" * 500))
    run.close()


def test_records_of_any_kind_become_json_data() -> None:
    assert jsonable({1: (a_span(0.0, 1.0), {2.5}), "x": float("-inf")}) == {
        "1": [{"executor": "trainer", "what": "train", "start": 0.0, "end": 1.0, "detail": {}}, [2.5]],
        "x": "-inf",
    }


# --- one run per directory ---------------------------------------------------------------------------------------------------


def test_a_second_run_in_a_directory_in_use_is_refused_with_the_holder_named(run: RunDirectory) -> None:
    for second in (lambda: RunDirectory.create(run.path, {}), lambda: RunDirectory.resume(run.path, 0)):
        with pytest.raises(RunDirectoryError, match="in use") as refusal:
            second()
        assert str(os.getpid()) in refusal.value.given
    run.step(a_step(1))


def test_a_directory_that_holds_a_run_is_refused_and_the_message_says_how_to_resume(run: RunDirectory) -> None:
    run.close()
    before = sorted(p.name for p in run.path.iterdir())
    with pytest.raises(RunDirectoryError, match="already holds a run") as refusal:
        RunDirectory.create(run.path, {})
    assert "freerun resume" in refusal.value.todo
    assert sorted(p.name for p in run.path.iterdir()) == before


def test_a_directory_with_other_files_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"not empty.*\n.*thesis\.tex"):
        RunDirectory.create(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from freerun.rundir import RunDirectory; RunDirectory.create(sys.argv[1], {});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False)
    assert (tmp_path / "run" / LOCK).exists()
    run = RunDirectory.resume(tmp_path / "run", 0)
    assert json.loads((run.path / LOCK).read_text())["pid"] == os.getpid()
    run.close()


def test_a_process_id_used_again_by_another_process_does_not_hold_the_lock(run: RunDirectory) -> None:
    run.close()
    holder = {"host": os.uname().nodename, "pid": os.getpid(), "started": "long ago"}
    (run.path / LOCK).write_text(json.dumps(holder))
    RunDirectory.resume(run.path, 0).close()


def test_a_torn_lock_is_taken_over(run: RunDirectory) -> None:
    run.close()
    (run.path / LOCK).write_text('{"host": "a", "pi')
    RunDirectory.resume(run.path, 0).close()


def test_a_lock_from_another_host_is_respected_because_it_cannot_be_checked(run: RunDirectory) -> None:
    run.close()
    (run.path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(RunDirectoryError, match="elsewhere") as refusal:
        RunDirectory.resume(run.path, 0)
    assert LOCK in refusal.value.todo


def test_a_process_that_ended_has_no_start_time_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) == ""
    child.wait()
    assert process_start(child.pid) == ""


# --- resume ------------------------------------------------------------------------------------------------------------------


def written_run(path: Path, steps: int) -> None:
    run = RunDirectory.create(path, {"steps": steps})
    run.evaluation(EvalRecord(step=0, split="heldout", accuracy=0.1, count=8, oldest=0, newest=0, seconds=1.0))
    for step in range(1, steps + 1):
        run.event(a_span(10.0 * (step - 1), 10.0 * step))
        run.step(a_step(step))
        run.sample(a_sample(step))
        run.evaluation(an_eval(step))
    run.finish("failed", "the trainer died")
    run.close()


def test_resuming_removes_the_lines_after_the_resumed_step_and_goes_on_with_its_clock(tmp_path: Path) -> None:
    written_run(tmp_path / "run", 5)
    run = RunDirectory.resume(tmp_path / "run", 3)
    assert run.elapsed == 30.0
    assert not (run.path / "summary.json").exists()
    run.step(a_step(4))
    rows = {n: read_log(run.path / f"{n}.jsonl").rows for n in ("metrics", "events", "evals", "samples")}
    assert [r["step"] for r in rows["metrics"]] == [1, 2, 3, 4]
    assert [r["step"] for r in rows["samples"]] == [1, 2, 3]
    assert [r["step"] for r in rows["evals"]] == [0, 1, 2, 3]
    assert [r["what"] for r in rows["events"]] == ["train", "train", "train", "resumed"]
    assert rows["events"][-1]["detail"]["removed_lines"] == {f"{n}.jsonl": 2 for n in ("metrics", "samples", "evals", "events")}
    run.close()
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["heldout"]["heldout"]["first"]["accuracy"] == 0.1
    assert len(json.loads((run.path / "environment.json").read_text())["attempts"]) == 2


def test_trials_of_one_step_are_told_apart_by_what_was_taken_and_a_resume_keeps_those_of_its_versions(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.step(a_step(1))
    for step, taken, version in ((0, 0, 0), (0, 8, 0), (0, 8, 0), (1, 8, 1), (2, 16, 2)):
        run.evaluation(
            TrialRecord(step=step, split="heldout", returns=(1.0,), length=1.0, version=version, taken=taken, seconds=99.0)
        )
    run.close()
    again = RunDirectory.resume(run.path, 1)
    again.close()
    assert [(e.step, e.taken) for e in run.evaluations] == [(0, 0), (0, 8), (1, 8), (2, 16)]
    assert [(e.step, e.taken) for e in again.evaluations] == [(0, 0), (0, 8), (1, 8)]


def test_resuming_a_run_that_was_killed_in_the_middle_of_a_line_removes_the_torn_line(tmp_path: Path) -> None:
    written_run(tmp_path / "run", 2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "vers')
    assert read_log(tmp_path / "run" / "metrics.jsonl").damaged == 1
    run = RunDirectory.resume(tmp_path / "run", 2)
    run.step(a_step(3))
    run.close()
    log = read_log(run.path / "metrics.jsonl")
    assert [r["step"] for r in log.rows] == [1, 2, 3] and log.damaged == 0


def test_a_resumed_run_goes_on_thinning_its_samples_where_it_was(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {}, max_sample_bytes=4000)
    for step in range(1, 101):
        run.sample(a_sample(step))
    run.close()
    run = RunDirectory.resume(tmp_path / "run", 100, max_sample_bytes=4000)
    for step in range(101, 201):
        run.sample(a_sample(step))
    run.close()
    rows = read_log(run.path / "samples.jsonl").rows
    assert len({b["index"] - a["index"] for a, b in itertools.pairwise(rows)}) == 1 and rows[-1]["step"] > 150


def test_resuming_what_is_not_a_run_directory_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            RunDirectory.resume(path, 0)
    assert list(tmp_path.iterdir()) == []


# --- full disk ---------------------------------------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of any file fail, the last one after a part of it, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_clear_error_and_the_record_is_written_once_there_is_room(run: RunDirectory) -> None:
    run.step(a_step(1))
    with files_no_larger_than((run.path / "metrics.jsonl").stat().st_size + 10):
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl could not be written") as error:
            run.step(a_step(2))
        assert "1 record kept in memory" in error.value.given and "room" in error.value.todo
        log = read_log(run.path / "metrics.jsonl")
        assert [r["step"] for r in log.rows] == [1] and log.damaged == 0
    run.close()
    assert [r["step"] for r in read_log(run.path / "metrics.jsonl").rows] == [1, 2]


def test_a_disk_still_full_at_the_end_is_an_error_and_the_lock_is_given_back(run: RunDirectory) -> None:
    with files_no_larger_than(10):
        with pytest.raises(RunDirectoryError):
            run.step(a_step(1))
        with pytest.raises(RunDirectoryError):
            run.close()
    assert not (run.path / LOCK).exists()
    assert not (run.path / "summary.json").exists()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="could not be made"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_the_log_of_events_is_bounded_and_keeps_moments_and_the_newest_spans(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("freerun.rundir.MAX_EVENT_BYTES", 20_000)
    run = RunDirectory.create(tmp_path / "run", {})
    for i in range(2000):
        run.event(a_span(float(i), i + 1.0))
        if i % 500 == 0:
            run.event(Event(executor="generator", what="died", start=float(i), end=float(i), detail={}))
        assert (run.path / "events.jsonl").stat().st_size < 21_000
    run.close()
    rows = read_log(run.path / "events.jsonl").rows
    assert [row["start"] for row in rows if row["what"] == "died"] == [0.0, 500.0, 1000.0, 1500.0]
    spans = [row["start"] for row in rows if row["what"] != "died"]
    assert spans == [float(i) for i in range(2000 - len(spans), 2000)] and len(spans) > 50
