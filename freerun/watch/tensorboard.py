"""TensorBoard as a sink. Needs the extra `tensorboard`."""

from collections.abc import Mapping
from pathlib import Path

from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord, TrialRecord
from freerun.watch.numbers import shares
from freerun.watch.optional import require

SummaryWriter = require("torch.utils.tensorboard", extra="tensorboard").SummaryWriter


class TensorBoardSink:
    """Writes event files below `directory` under the names of `METRICS`, over trainer steps.

    A histogram becomes one scalar per bucket (`lag/tokens/1`), the bucket's share. Of every `sample_every`-th step the first
    recorded trajectory is shown as text. Timeline events are for the report.
    """

    def __init__(self, directory: Path | str, *, sample_every: int = 10) -> None:
        self._writer = SummaryWriter(str(directory))
        self._sample_every, self._sampled = sample_every, -1

    def event(self, record: Event) -> None:
        """Not shown."""

    def step(self, record: StepRecord) -> None:
        for name, value in record.metrics.items():
            if isinstance(value, Mapping):
                for bucket, share in shares(value).items():
                    self._writer.add_scalar(f"{name}/{bucket}", share, record.step)
            else:
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def sample(self, record: SampleRecord) -> None:
        if record.step % self._sample_every == 0 and record.step != self._sampled:
            self._sampled = record.step
            # Four blanks make a block of code in Markdown, in which nothing that a model wrote is markup.
            text = f"{record.prompt}\n[reward {record.reward:g}, lag {record.lag}]\n{record.completion}"
            self._writer.add_text("sample", "\n".join(f"    {line}" for line in text.splitlines()), record.step)

    def evaluation(self, record: Evaluation) -> None:
        if isinstance(record, TrialRecord):
            self._writer.add_scalar(f"judged/{record.split}", record.mean, record.step)
        else:
            self._writer.add_scalar(f"heldout/{record.split}", record.accuracy, record.step)
        self._writer.flush()

    def status(self, record: Status) -> None:
        """Not shown."""

    def close(self) -> None:
        self._writer.close()
