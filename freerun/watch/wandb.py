"""Weights & Biases as a sink. Needs the extra `wandb`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord, TrialRecord
from freerun.watch.numbers import shares
from freerun.watch.optional import require

wandb = require("wandb", extra="wandb")


class WandbSink:
    """Logs to `project` as a run named like `directory`, under the names of `METRICS` against `trainer_step`, in the mode that
    the environment asks for, such as `WANDB_MODE=offline`.

    A histogram becomes one number per bucket (`lag/tokens/1`), the bucket's share. At the end the recorded trajectories, at
    most `max_samples` and evenly spread, become a table.
    """

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any], *, max_samples: int = 500) -> None:
        self._run = wandb.init(project=project, name=directory.name, config=dict(config), dir=str(directory))
        self._run.define_metric("trainer_step")
        self._run.define_metric("*", step_metric="trainer_step")
        self._samples: list[SampleRecord] = []
        self._seen, self._stride, self._max_samples = 0, 1, max_samples
        self._closed = False

    def event(self, record: Event) -> None:
        """Not shown."""

    def step(self, record: StepRecord) -> None:
        values: dict[str, float] = {"trainer_step": record.step, "version": record.version, "seconds": record.seconds}
        for name, value in record.metrics.items():
            if isinstance(value, Mapping):
                values |= {f"{name}/{bucket}": share for bucket, share in shares(value).items()}
            else:
                values[name] = value
        self._run.log(values)

    def sample(self, record: SampleRecord) -> None:
        if self._seen % self._stride == 0:
            self._samples.append(record)
        self._seen += 1
        if len(self._samples) > self._max_samples:
            self._samples, self._stride = self._samples[::2], 2 * self._stride

    def evaluation(self, record: Evaluation) -> None:
        if isinstance(record, TrialRecord):
            self._run.log({"trainer_step": record.step, f"judged/{record.split}": record.mean})
        else:
            self._run.log({"trainer_step": record.step, f"heldout/{record.split}": record.accuracy})

    def status(self, record: Status) -> None:
        """Not shown."""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        columns = ["step", "uid", "prompt", "completion", "reward", "oldest", "newest", "lag", "stop"]
        rows = [[s.step, s.uid, s.prompt, s.completion, s.reward, s.oldest, s.newest, s.lag, s.stop] for s in self._samples]
        self._run.log({"samples": wandb.Table(columns=columns, data=rows)})
        self._run.finish()
