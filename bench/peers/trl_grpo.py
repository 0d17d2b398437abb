"""TRL's GRPOTrainer on the tiny job of `tiny_job.py`. Prints one JSON object.

    make bench-peers-env
    .venv-peers/bin/python bench/peers/trl_grpo.py --steps 60
    .venv-peers/bin/python bench/peers/trl_grpo.py --reward-delay-median 0.02 --reward-delay-sigma 1

TRL is synchronous: it samples, scores and trains in turn. A delay is slept inside its reward function, which TRL calls once for
all samples of a step; `--reward-workers` says how many of them sleep at the same time (by default all, the best case for TRL: a
step then waits only for its slowest sample). Threads are pinned: the default number costs a model this small a factor of ten.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import tiny_job
import torch
import transformers
import trl


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=45, help="training steps, the first five not counted in the rates")
    parser.add_argument("--reward-delay-median", type=float, default=0.0, metavar="S", help="median seconds slept per sample")
    parser.add_argument("--reward-delay-sigma", type=float, default=0.0, help="standard deviation of the delay's logarithm")
    parser.add_argument("--reward-workers", type=int, default=64, help="samples that are scored at the same time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class TimedReward:
    """The reward function as TRL calls it: once per step, with every sample of the step."""

    __name__ = "digits"

    def __init__(self, delay: tiny_job.Delay, workers: int) -> None:
        self._delay, self._done = delay, 0
        self._pool = ThreadPoolExecutor(workers)
        self.last: list[float] = []

    def __call__(self, completions: list[str], **_: object) -> list[float]:
        numbers = range(self._done, self._done + len(completions))
        self._done += len(completions)
        self.last = list(self._pool.map(self._score, completions, numbers))
        return self.last

    def _score(self, completion: str, number: int) -> float:
        time.sleep(self._delay.seconds(number))
        return tiny_job.reward(completion)


class StepClock(transformers.TrainerCallback):
    """Notes the end of each optimiser step."""

    def __init__(self, clock: tiny_job.Clock, reward: TimedReward) -> None:
        self._clock, self._reward = clock, reward

    def on_step_end(self, *_: object, **__: object) -> None:
        self._clock.step(self._reward.last)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    batch = tiny_job.PROMPTS_PER_STEP * tiny_job.SAMPLES_PER_PROMPT
    rows = [{"prompt": p} for p in tiny_job.prompts(options.steps * tiny_job.PROMPTS_PER_STEP, options.seed)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        tiny_job.save(folder, options.seed)
        config = trl.GRPOConfig(**tiny_job.trl_settings(Path(scratch) / "out", steps=options.steps, seed=options.seed))
        delay = tiny_job.Delay(options.reward_delay_median, options.reward_delay_sigma, options.seed)
        clock = tiny_job.Clock()
        reward = TimedReward(delay, options.reward_workers)
        trainer = trl.GRPOTrainer(
            model=str(folder),
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tiny_job.tokenizer(),
            callbacks=[StepClock(clock, reward)],
        )
        with contextlib.redirect_stdout(sys.stderr):
            clock.start()
            trainer.train()
    settings = vars(options) | {"samples_per_step": batch, "tokens_per_sample": tiny_job.COMPLETION_TOKENS}
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    figures = clock.figures()
    json.dump({"system": "TRL GRPOTrainer", "settings": settings, "versions": versions, **figures}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
