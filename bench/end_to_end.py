"""Whole training loops on one tiny job: Freerun against TRL's GRPOTrainer, and Freerun against itself at several lags.

    python bench/end_to_end.py --peer-python .venv-peers/bin/python
    python bench/end_to_end.py --lags 0 1 2 4 --delay-median 0.02 --delay-sigma 1

Everybody trains the same model files on the same prompts with the same reward and the same number of samples per step (see
`peers/tiny_job.py`), with one thread. The first five steps are not counted. A delay is slept per sample inside the reward: its
seconds are lognormal with the stated median and sigma, and all samples of a step may be scored at the same time.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import tiny_job
from rich.console import Console
from rich.table import Table

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import grpo
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.models import lm
from freerun.recipes.base import PlacementConfig, RunConfig
from freerun.rewards.pool import RewardConfig
from freerun.schedule import ControllerConfig
from freerun.tasks.base import Task
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Prompt, Sampling


def digits(prompt: str, completion: str, meta: object) -> float:
    """The job's reward, as a Freerun reward function."""
    return tiny_job.reward(completion)


@dataclass(frozen=True)
class Digits:
    """The job's prompts and reward, as a Freerun task."""

    def build(self) -> Task:
        asked = sorted(set(tiny_job.prompts(400, seed=0)))
        prompts = [Prompt(f"digits/{i}", text) for i, text in enumerate(asked)]
        return Task(name="digits", train=prompts[8:], heldout=prompts[:8], reward=digits, solution=str)


class StepTimes:
    """A sink that keeps when each step ended, and its mean reward."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.clock = tiny_job.Clock()
        self.lags: list[float] = []

    def event(self, record) -> None:
        if self.began is None and record.what == "generate":
            self.began = record.start

    def step(self, record) -> None:
        self.clock.steps.append((record.seconds - self.began, record.metrics["reward/mean"]))
        self.lags.append(record.metrics["lag/mean"])

    def sample(self, record) -> None: ...

    def evaluation(self, record) -> None: ...

    def status(self, record) -> None: ...

    def close(self) -> None: ...


def recipe(folder: Path, *, lag: int, steps: int, delay: tiny_job.Delay, seed: int) -> RunConfig:
    """The tiny job at a target lag. At lag 0 the trainer waits for its step, as TRL does."""
    return RunConfig(
        model=lm.Config(path=str(folder)),
        task=Digits(),
        algorithm=grpo.Config(),
        sampling=Sampling(temperature=1.0, max_tokens=tiny_job.COMPLETION_TOKENS),
        control=ControllerConfig(
            steps=steps,
            groups=tiny_job.PROMPTS_PER_STEP,
            group_size=tiny_job.SAMPLES_PER_PROMPT,
            max_lag=lag,
            window=1 if lag == 0 else tiny_job.PROMPTS_PER_STEP,
            stream=tiny_job.PROMPTS_PER_STEP,
            decode_steps=tiny_job.COMPLETION_TOKENS,
            eval_every=0,
            final_eval_prompts=0,
            sample_every=tiny_job.PROMPTS_PER_STEP,
        ),
        generator=GeneratorConfig(max_context=32, dtype="float32"),
        reward=RewardConfig(
            # A reward that is at hand at once needs no thread; TRL calls it in its own.
            threads=delay.median > 0,
            concurrency=512,
            delay_median=delay.median,
            delay_sigma=delay.sigma or 1.0,
            delay_seed=seed,
        ),
        trainer=TrainerConfig(
            lr=tiny_job.LEARNING_RATE, betas=(0.9, 0.999), packing="rows", micro_tokens=4096, dtype="float32"
        ),
        placement=PlacementConfig(kind="inline", schedule="threads", threads=1),
        seed=seed,
    )


def ours(folder: Path, *, lag: int, steps: int, delay: tiny_job.Delay, seed: int) -> dict[str, object]:
    """Figures of one Freerun run."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as directory:
        config = recipe(folder, lag=lag, steps=steps, delay=delay, seed=seed)
        asyncio.run(launch(config, Path(directory), Fanout([times]), checkpoint_at_end=False))
    return {**times.clock.figures(), "mean_lag": sum(times.lags) / len(times.lags)}


def trl(python: str, *, steps: int, delay: tiny_job.Delay, seed: int) -> dict[str, object]:
    """Figures of TRL, in its own environment."""
    command = [python, str(Path(__file__).parent / "peers" / "trl_grpo.py"), "--steps", str(steps), "--seed", str(seed)]
    command += ["--reward-delay-median", str(delay.median), "--reward-delay-sigma", str(delay.sigma)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout
    return json.loads(output[output.index("{") :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=65, help="steps of each run, five of them warm-up")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--delay-median", type=float, default=0.0, metavar="S", help="median seconds slept per sample in the reward"
    )
    parser.add_argument("--delay-sigma", type=float, default=0.0, help="standard deviation of the delay's logarithm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python", metavar="PYTHON", help="python of the environment with TRL (`make bench-peers-env`)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    asked = parser.parse_args()
    delay = tiny_job.Delay(asked.delay_median, asked.delay_sigma)
    sides: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        tiny_job.save(folder, seed=0)
        # Seeds outside, sides inside: what the machine does meanwhile hits every side.
        for seed in range(asked.seeds):
            if asked.peer_python:
                sides.setdefault("TRL GRPOTrainer", []).append(
                    trl(asked.peer_python, steps=asked.steps, delay=delay, seed=seed)
                )
            for lag in asked.lags:
                figures = ours(folder, lag=lag, steps=asked.steps, delay=delay, seed=seed)
                sides.setdefault(f"Freerun, lag {lag}", []).append(figures)
    _show(sides, asked)
    if asked.json:
        asked.json.write_text(
            json.dumps({"delay": [delay.median, delay.sigma], "steps": asked.steps, "sides": sides}, indent=1)
        )


def _show(sides: dict[str, list[dict[str, object]]], asked: argparse.Namespace) -> None:
    base = _median(next(iter(sides.values())), "samples_per_second")
    table = Table(
        title=f"one thread, reward delay median {asked.delay_median} s sigma {asked.delay_sigma}, {asked.seeds} seeds, medians"
    )
    for column in ("side", "samples/s", "ratio", "s to reward 0.8", "last reward", "mean lag"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, runs in sides.items():
        rate, goal = _median(runs, "samples_per_second"), _median(runs, "seconds_to_goal")
        lag = f"{_median(runs, 'mean_lag'):.2f}" if "mean_lag" in runs[0] else "0"
        reached = "not reached" if goal is None else f"{goal:.2f}"
        table.add_row(name, f"{rate:.0f}", f"{rate / base:.2f}", reached, f"{_median(runs, 'last_reward'):.3f}", lag)
    Console().print(table)


def _median(runs: list[dict[str, object]], key: str) -> float | None:
    values = [run[key] for run in runs]
    if None in values:
        return None
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
