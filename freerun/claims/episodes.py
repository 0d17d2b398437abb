"""Small environments through the real engine: what claims about control are tested on.

Everything that ships takes part: actors, storage or queue, trainer, judge, in one process and in a fixed order, so that a run
repeats bit for bit. All arms of a claim share a run's config but for what they are about. Policies are judged by the actions
that they think best, on the same episodes for all arms of a seed.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from freerun.claims.base import Arm
from freerun.claims.curves import last_tenth, thinned
from freerun.errors import Diverged
from freerun.launch_control import launch_control
from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord, TrialRecord
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.schedule import FULL

JUDGED = 20
"""Episodes that say how good a policy is in the beginning and in the end."""
LOOKS, LOOK_EPISODES = 10, 5
"""Looks at it on the way, and the episodes of each."""


def arm(config: ControlRun, *, also: Sequence[str] = (), after: "After | None" = None) -> Arm:
    """An arm that runs `config` with each seed. `also` and `after` are those of `play`."""

    def run(seed: int) -> Mapping[str, Any]:
        return play(config, seed=seed, also=also, after=after)

    return run


After = Callable[[ControlRun, Path], Mapping[str, Any]]
"""Further numbers of a finished run, from its config and its newest checkpoint."""


def play(config: ControlRun, *, seed: int, also: Sequence[str] = (), after: After | None = None) -> dict[str, Any]:
    """Run `config` and say how that went. `also` names metrics of a step to keep.

    What comes back: `return`, the mean of `JUDGED` episodes in the end, and `start`, the same in the beginning; `mean_return`,
    of all looks on the way, which is how fast it learned; `score`, the last one normalised, where there are references; what
    is in `also`, means of the last tenth; `diverged`, 1 if a loss was not finite, and then `return` and `mean_return` are those
    of the start; and `curves`.
    """
    config = replace(
        config,
        seed=seed,
        control=replace(config.control, evaluations=LOOKS, eval_episodes=LOOK_EPISODES, final_eval_episodes=JUDGED),
        actor=replace(config.actor, picture_frames=0),
        placement=PlacementConfig(kind="inline", schedule="serial", threads=1),
    )
    kept, began, diverged = Kept(also), time.process_time(), False
    more: Mapping[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = asyncio.run(launch_control(config, Path(folder), kept, checkpoint_at_end=after is not None))
            if not outcome.finished:
                raise KeyboardInterrupt
            if after is not None:
                (checkpoint,) = (Path(folder) / "checkpoints").glob("step-*")
                more = after(config, checkpoint)
        except Diverged:
            diverged = True
    return kept.result(diverged) | dict(more) | {"cpu": time.process_time() - began}


class Kept:
    """A sink that keeps what a claim is about."""

    def __init__(self, also: Sequence[str] = ()) -> None:
        self.curves: dict[str, list[float]] = {name: [] for name in also}
        self.trials: list[TrialRecord] = []

    def step(self, record: StepRecord) -> None:
        for name, values in self.curves.items():
            value = record.metrics.get(name)
            if isinstance(value, float | int):
                values.append(float(value))

    def evaluation(self, record: Evaluation) -> None:
        assert isinstance(record, TrialRecord), "these runs play episodes"
        self.trials.append(record)

    def event(self, record: Event) -> None:
        """Not kept."""

    def sample(self, record: SampleRecord) -> None:
        """Not kept."""

    def status(self, record: Status) -> None:
        """Not kept."""

    def close(self) -> None:
        """Nothing to close."""

    def result(self, diverged: bool) -> dict[str, Any]:
        """See `play`."""
        full, looks = ([t for t in self.trials if (t.split == FULL) is whole] for whole in (True, False))
        first, last = full[0], full[0] if diverged else full[-1]
        scores = {} if last.score is None else {"score": last.score}
        return {
            "return": last.mean,
            "start": first.mean,
            "mean_return": first.mean if diverged else fmean(trial.mean for trial in [*looks, last]),
            **scores,
            **{name: last_tenth(values) for name, values in self.curves.items()},
            "diverged": float(diverged),
            "curves": {
                "return": [float(f"{trial.mean:.4g}") for trial in looks],
                "taken": [float(trial.taken) for trial in looks],
                **{name: thinned(values) for name, values in self.curves.items()},
            },
        }
