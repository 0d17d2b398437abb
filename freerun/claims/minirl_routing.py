"""In a mixture of experts, replaying the generator's routing brings the trainer nearer to it, and its own keeps it still."""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from freerun.algorithms.language import minirl
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.curves import mean
from freerun.launch import launch
from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord
from freerun.recipes import tiny_minirl
from freerun.recipes.base import PlacementConfig, RunConfig

STEPS = 40
KEPT = {
    "engines": "mismatch/lag0_abs_mean",
    "moved": "algorithm/moved",
    "clipped": "ratio/clipped",
    "reward": "reward/mean",
}
"""What is kept of every step, under a short name: `engines` is the mean difference of the log-probs of generator and trainer
under the same weights, `moved` that of the log-probs before and after the updates of a step."""


class Kept:
    """A sink that keeps what this claim is about."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {name: [] for name in KEPT}

    def step(self, record: StepRecord) -> None:
        for name, metric in KEPT.items():
            value = record.metrics.get(metric, float("nan"))
            self.curves[name].append(value if isinstance(value, float) else float("nan"))

    def evaluation(self, record: Evaluation) -> None:
        """Not kept."""

    def event(self, record: Event) -> None:
        """Not kept."""

    def sample(self, record: SampleRecord) -> None:
        """Not kept."""

    def status(self, record: Status) -> None:
        """Not kept."""

    def close(self) -> None:
        """Nothing to close."""


def config(routing: Literal["free", "update", "rollout"], seed: int) -> RunConfig:
    """The recipe, in one process and in order, on fresh data, with four updates a step."""
    base = tiny_minirl.recipe()
    return replace(
        base,
        algorithm=minirl.Config(routing=routing),
        control=replace(base.control, steps=STEPS, max_lag=0, window=1, eval_every=0, final_eval_prompts=0),
        trainer=replace(base.trainer, minibatches=4),
        placement=PlacementConfig(kind="inline", schedule="serial", threads=1),
        seed=seed,
    )


def arm(routing: Literal["free", "update", "rollout"]) -> Arm:
    def run(seed: int) -> Mapping[str, Any]:
        kept = Kept()
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(launch(config(routing, seed), Path(folder), kept, checkpoint_at_end=False))
        return {name: mean(values) for name, values in kept.curves.items()}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With a generator in bfloat16 and a trainer in float32, replaying the generator's routing lessens the mean "
            "difference of their log-probs under equal weights, and replaying that of the start of a step lessens how far its "
            "updates move log-probs."
        ),
        paper="MiniRL (arXiv 2512.01374); its gains in reward, of a 30B mixture, are not tested here",
        method=minirl,
        arms={"free": arm("free"), "update": arm("update"), "rollout": arm("rollout")},
        metric="engines",
        better="lower",
        expected=(
            Expectation(better="rollout", worse="free"),
            Expectation(better="update", worse="free", metric="moved"),
            Expectation(better="rollout", worse="free", metric="moved"),
        ),
        minutes=5.0,
    )
