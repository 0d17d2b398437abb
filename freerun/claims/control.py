"""Small control tasks through the real engine: what claims about control methods are tested on.

Everything that ships takes part: actors, storages, trainer, phases, evaluation, in one process and in a fixed order, so that a
run repeats bit for bit. All arms of a claim share a `Job`. Scores are normalised: 0 is a random policy, 100 the last policy of
the SAC run that made the data sets.
"""

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from freerun.actors.environment import ActorConfig, EnvConfig, GymConfig
from freerun.algorithms.control_base import ControlConfig
from freerun.claims import episodes
from freerun.claims.base import Arm
from freerun.claims.curves import last_tenth, thinned
from freerun.claims.digest import ROOT, digest
from freerun.claims.episodes import After, Kept
from freerun.datasets.base import Episodes, EpisodesConfig
from freerun.datasets.files import FileConfig, write_npz
from freerun.datasets.grades import cache
from freerun.env_schedule import EnvSchedule
from freerun.errors import Diverged
from freerun.launch_control import launch_control
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.tasks.grades import MAKINGS, graded
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig, SourceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A self-made data set, as `datasets.grades.Grade`, but made anew for every version of the code that makes it."""

    env: str = "pendulum"
    """A name of `tasks.grades.MAKINGS`."""
    grade: Literal["random", "medium", "medium-replay", "medium-expert", "expert"] = "medium"
    """How good the policy is that acts in it."""
    episodes: int = 0
    """Only the first so many episodes; 0 is all."""

    def build(self) -> Episodes:
        """Makes all grades of the environment if this one is not there."""
        code = digest(ROOT / "tasks" / "grades.py")
        folder = cache() / "claims" / f"{self.env}-{code}"
        if not (folder / f"{self.grade}.npz").is_file():
            for grade, made in graded(self.env, MAKINGS[self.env], seed=0, progress=lambda what, share: None).items():
                write_npz(folder / f"{grade}.npz", made)
        whole = FileConfig(path=str(folder / f"{self.grade}.npz")).build()
        return whole if not self.episodes else first(whole, self.episodes)


def on_recorded(config: ControlRun, data: Made, *, best_share: float = 1.0) -> Arm:
    """An arm that runs `config` on `data` alone, or on the best share of its episodes, and is scored by its references."""

    def run(seed: int) -> Mapping[str, Any]:
        source = DatasetConfig(data=data, best_share=best_share)
        return episodes.play(replace(config, sources=(source,), scores=data.build().scores), seed=seed)

    return run


def first(data: Episodes, num: int) -> Episodes:
    """The first `num` episodes of `data`."""
    rows = sum(data.lengths[:num])
    return Episodes(name=data.name, columns={n: column[:rows] for n, column in data.columns.items()}, about=data.about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all arms of a claim share. The defaults are Pendulum with networks of 64 by 64, where 1000 updates of SAC take about
    three seconds of one core."""

    env: EnvConfig = field(default_factory=lambda: GymConfig(id="Pendulum-v1"))
    """The environment."""
    judge_env: EnvConfig | None = None
    """Where policies are judged, if not there."""
    scores: EpisodesConfig = field(default_factory=Made)
    """A data set that knows the reference returns."""
    batch: int = 128
    """Rows of an update."""
    envs: int = 4
    """Environments of the actor."""
    chunk: int = 8
    """Steps of each environment per order."""
    replay: int = 50_000
    """Transitions that replay holds."""
    evaluations: int = 20
    """Evaluations on the way, evenly spread over environment steps and updates without actors."""
    episodes: int = 10
    """Episodes of each."""
    last_episodes: int = 50
    """Episodes of the evaluations before and after the run."""


def train(
    algorithm: ControlConfig,
    *,
    phases: Sequence[Phase],
    seed: int,
    job: Job | None = None,
    data: EpisodesConfig | None = None,
    sources: Sequence[SourceConfig] = (),
    control: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    watch: Sequence[str] = (),
    after: After | None = None,
) -> dict[str, Any]:
    """Train and say how that went. `after` gives further numbers, from the config and the checkpoint at the end.

    Sources are `data` (named "dataset"), replay if any phase has actors, and `sources`. `control` and `trainer` change fields
    of those sections. What comes back: normalised `start` and `score`, before and after the run; `mean` and `lowest` of the
    evaluations on the way; for each name in `watch`, a metric of a step, the mean of its last tenth; `diverged`, 1 if a loss
    was not finite, in which case `score`, `mean` and `lowest` are 0; `scores`, the evaluations on the way, and `curves`.
    """
    job = job or Job()
    own: list[SourceConfig] = [DatasetConfig(data=data)] if data is not None else []
    if any(phase.env_steps for phase in phases):
        own.append(ReplayConfig(capacity=job.replay))
    config = ControlRun(
        env=job.env,
        algorithm=algorithm,
        control=EnvSchedule(
            **{
                "phases": tuple(phases),
                "chunk": job.chunk,
                "evaluations": job.evaluations,
                "eval_episodes": job.episodes,
                "final_eval_episodes": job.last_episodes,
                **(control or {}),
            }
        ),
        sources=(*own, *sources),
        actor=ActorConfig(envs=job.envs, picture_frames=0),
        judge_env=job.judge_env,
        trainer=ControlTrainerConfig(**{"batch": job.batch, **(trainer or {})}),
        scores=job.scores.build().scores,
        placement=PlacementConfig(kind="inline", schedule="serial", threads=1),
        seed=seed,
    )
    kept, began, diverged = Scores(watch), time.process_time(), False
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


def since(numbers: Mapping[str, Any], share: float) -> list[float]:
    """The evaluations of a run since `share` of its work was done, the last one included. With evaluations at whole shares, the
    first is that of the policy as it was then."""
    way = [*numbers["scores"], numbers["score"]]
    return way[max(0, round(share * len(way)) - 1) :]


def switched(way: Sequence[float]) -> dict[str, float]:
    """Of evaluations since actors took over from recorded data: `offline`, the first, and `online`, the mean of all."""
    return {"offline": way[0], "online": sum(way) / len(way)}


class Scores(Kept):
    """A sink that keeps evaluations as normalised scores, in order."""

    def result(self, diverged: bool) -> dict[str, Any]:
        """See `train`."""
        start, *way = [trial.score or 0.0 for trial in self.trials]
        score = 0.0 if diverged else way.pop()
        return {
            "start": start,
            "score": score,
            "mean": 0.0 if diverged or not way else sum(way) / len(way),
            "lowest": 0.0 if diverged or not way else min(way),
            "scores": [round(value, 1) for value in way],
            "diverged": float(diverged),
            **{name: last_tenth(values) for name, values in self.curves.items()},
            "curves": {name: thinned(values) for name, values in self.curves.items()},
        }
