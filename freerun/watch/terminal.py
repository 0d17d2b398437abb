"""The live view in the terminal, as a sink; a line per step where the output is not a terminal."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord, TrialRecord
from freerun.watch.numbers import duration
from freerun.watch.screen import RunState, ending, plain_evaluation, plain_step, screen
from freerun.watch.trials import is_control, plain_control_step, plain_trial


class Terminal:
    """Shows a run while it goes on, and what came of it when it is closed.

    In a terminal the view is redrawn in place four times a second, and what happens once (a checkpoint, a death) is a line
    above it. Elsewhere (a pipe, a file, `TERM=dumb`) each step and each evaluation is one line of plain text. `began` is where
    the run's clock stands at the start, and `earlier` are the evaluations so far: `RunDirectory.elapsed` and `.evaluations`.
    """

    def __init__(
        self,
        title: str,
        *,
        run_dir: Path | None = None,
        report: Path | None = None,
        began: float = 0.0,
        earlier: Sequence[Evaluation] = (),
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._state, self._run_dir, self._report = RunState(title), run_dir, report
        for record in earlier:
            self._state.judged(record)
        self._clock, self._seconds, self._heard = clock, began, clock()
        self._closed = False
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._screen, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def event(self, record: Event) -> None:
        if record.start == record.end:
            detail = ", ".join(f"{name} {value}" for name, value in record.detail.items())
            self._say(f"{duration(record.start)} {record.executor}: {record.what}" + (f" ({detail})" if detail else ""))

    def step(self, record: StepRecord) -> None:
        self._state.take(record)
        if self._live is None:
            total = self._state.status.total_steps if self._state.status else 0
            line = plain_control_step if is_control(record.metrics) else plain_step
            self._say(line(record, total, self._state.step_seconds[-1]))

    def sample(self, record: SampleRecord) -> None:
        """Trajectories are for the run directory and the report."""

    def evaluation(self, record: Evaluation) -> None:
        self._state.judged(record)
        if self._live is None:
            self._say(plain_trial(record) if isinstance(record, TrialRecord) else plain_evaluation(record))

    def status(self, record: Status) -> None:
        self._state.status, self._seconds, self._heard = record, record.seconds, self._clock()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self._live.stop()
        self._console.print(ending(self._state))
        for name, path in (("run   ", self._run_dir), ("report", self._report)):
            if path is not None:
                self._say(f"{name} {path}")

    def _screen(self) -> RenderableType:
        now = self._seconds + self._clock() - self._heard
        return screen(self._state, now=now, width=min(self._console.width, 110))

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
