"""A run directory read back as records, whatever state it is in: finished, running, killed in the middle of a line."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from freerun.errors import RunDirectoryError
from freerun.metrics import EvalRecord, Event, SampleRecord, StepRecord, TrialRecord, evaluation_of
from freerun.rundir import CONFIG, ENVIRONMENT, EVALS_LOG, EVENTS_LOG, METRICS_LOG, SAMPLES_LOG, SUMMARY, read_log
from freerun.runlock import RunLock

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class RunRecords:
    """Everything that a run directory says. `summary` is None while a run goes on and after a kill; `damaged` counts the lines
    of each file that could not be read, where there are any; `locked` says that a living process is writing."""

    path: Path
    config: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None
    locked: bool
    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvalRecord, ...]
    trials: tuple[TrialRecord, ...]
    events: tuple[Event, ...]
    samples: tuple[SampleRecord, ...]
    damaged: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """How long the run has lasted, by its last record."""
        ends = [*(s.seconds for s in self.steps[-1:]), *(e.seconds for e in self.evaluations), *(e.end for e in self.events)]
        ends += [t.seconds for t in self.trials]
        return max(ends, default=0.0)

    @property
    def outcome(self) -> str:
        if self.summary is not None:
            return str(self.summary.get("outcome", "unfinished"))
        return "running" if self.locked else "unfinished"


def load(path: Path | str) -> RunRecords:
    """Read a run directory. Raises `RunDirectoryError` if it is not one."""
    path = Path(path)
    config = _json(path / CONFIG)
    if config is None:
        given = "no readable config.json in it" if path.is_dir() else "no such directory"
        raise RunDirectoryError(
            f"{path} is not a run directory", given=given, expected="a directory made by `freerun run`", todo="check the path"
        )
    damaged: dict[str, int] = {}

    def records(name: str, make: Callable[[dict[str, Any]], Record]) -> tuple[Record, ...]:
        log = read_log(path / name)
        found, unreadable = [], log.damaged
        for row in log.rows:
            try:
                found.append(make(row))
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
                unreadable += 1
        if unreadable:
            damaged[name] = unreadable
        return tuple(found)

    environment = _json(path / ENVIRONMENT) or {}
    evaluations = records(EVALS_LOG, evaluation_of)
    return RunRecords(
        path=path,
        config=config,
        attempts=tuple(environment.get("attempts", ())),
        summary=_json(path / SUMMARY),
        locked=RunLock(path).is_held(),
        steps=records(METRICS_LOG, _step),
        evaluations=tuple(e for e in evaluations if isinstance(e, EvalRecord)),
        trials=tuple(e for e in evaluations if isinstance(e, TrialRecord)),
        events=records(EVENTS_LOG, _event),
        samples=records(SAMPLES_LOG, _sample),
        damaged=damaged,
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _step(row: Mapping[str, Any]) -> StepRecord:
    metrics = {str(name): _value(value) for name, value in row["metrics"].items()}
    return StepRecord(step=int(row["step"]), version=int(row["version"]), seconds=float(row["seconds"]), metrics=metrics)


def _value(value: Any) -> float | dict[int, float]:
    return {int(k): float(v) for k, v in value.items()} if isinstance(value, dict) else float(value)


def _event(row: Mapping[str, Any]) -> Event:
    return Event(
        executor=str(row["executor"]),
        what=str(row["what"]),
        start=float(row["start"]),
        end=float(row["end"]),
        detail=dict(row["detail"]),
    )


def _sample(row: Mapping[str, Any]) -> SampleRecord:
    return SampleRecord(
        step=int(row["step"]),
        item=int(row["item"]),
        uid=str(row["uid"]),
        prompt=str(row["prompt"]),
        completion=str(row["completion"]),
        reward=float(row["reward"]),
        oldest=int(row["oldest"]),
        newest=int(row["newest"]),
        lag=int(row["lag"]),
        stop=str(row["stop"]),
        parts={str(k): float(v) for k, v in row["parts"].items()},
    )


def scalar(run: RunRecords, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, over the steps that report it."""
    found = [(float(s.step), v) for s in run.steps for v in [s.metrics.get(name)] if isinstance(v, float)]
    return [step for step, _ in found], [value for _, value in found]
