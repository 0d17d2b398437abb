"""A tiny transformer through the real engine: what claims about language models are tested on.

Everything that ships takes part: generator, rewarder, admission, trainer, in one process and in a fixed order, so that a run
repeats bit for bit. All arms of a claim share a `Job`: model, task, warm start, learning rate, batch. What differs is the
algorithm and where its data come from:

lag         `lag = L`: from step L on, every token is exactly L versions old (earlier ones are as old as they can be)
rounds      `rounds = S`: the sampler gets new weights every S updates, so lags are 0, 1, ... S - 1 in turn
data set    `offline`: a fixed set of responses, such as `Sampled` from a stated policy, with its log-probs
experts     `offline=None, experts=...` and `control={"experts": n}`: n demonstrations beside the rollouts of each step

The lag is exact because a generator's call is long enough for any response: what is admitted when a version is published is
made by that version at once, and then waits for its turn.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freerun import config as configs
from freerun.actors.generator import GeneratorConfig, GeneratorExecutor
from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import sft
from freerun.claims.curves import last_tenth, thinned
from freerun.claims.digest import digest
from freerun.errors import ConfigError, Diverged
from freerun.launch import launch
from freerun.metrics import EvalRecord, Evaluation, Event, SampleRecord, Status, StepRecord
from freerun.models import tiny_lm
from freerun.models.gguf import cache_directory
from freerun.recipes.base import PlacementConfig, RunConfig
from freerun.rewards.pool import RewardConfig, prompt_text
from freerun.schedule import ControllerConfig, Stream
from freerun.tasks import reversal
from freerun.tasks.base import Task, TaskConfig
from freerun.tasks.examples import ExamplesConfig, Solutions
from freerun.trainer.trainer import TrainerConfig, TrainerExecutor
from freerun.types import Example, Prompt, Request, RewardResult, Sampling, Stop, Trajectory
from freerun.weights import inprocess

CURVES = ("reward/mean", "ess", "entropy", "ratio/clipped", "lag/mean", "grad_norm", "response/length_mean")
"""What is kept of every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all arms of a claim share. The defaults are the reversal of words of five letters: one core takes about 15 seconds
    for a run, which brings REINFORCE on fresh data from a third to nine tenths of the held-out words. The learning rate was
    chosen for that, out of 3e-4, 6e-4 and 1e-3 with one seed, and is used for every method as it is."""

    task: TaskConfig = field(default_factory=lambda: reversal.Config(least=5, most=5, letters=10))
    """Prompts, and a reward that is exact."""
    alphabet: str = "abcdefghij>"
    """The characters of the task."""
    layers: int = 2
    """Layers of the model."""
    width: int = 64
    """Its width."""
    context: int = 16
    """Most tokens of prompt and response."""
    max_tokens: int = 8
    """Most tokens of a response."""
    warm_accuracy: float = 0.35
    """The warm start ends when so many held-out problems are solved; 0 begins with random weights."""
    warm_lr: float = 5e-3
    """Its learning rate."""
    warm_batch: int = 64
    """Demonstrations per step of it."""
    warm_limit: int = 400
    """Most steps of it."""
    lr: float = 3e-4
    """Learning rate of RL."""
    lr_warmup: int = 20
    """Steps over which it rises: Adam's first steps are its worst informed."""
    steps: int = 200
    """Steps of RL."""
    groups: int = 16
    """Prompts per step."""
    group_size: int = 8
    """Responses per prompt."""
    heldout: int = 512
    """Held-out problems that judge the result."""

    def model(self, weights: str = "") -> tiny_lm.Config:
        """The network, with random or given weights."""
        return tiny_lm.Config(
            layers=self.layers,
            width=self.width,
            heads=4,
            kv_heads=4,
            context=self.context,
            alphabet=self.alphabet,
            weights=weights,
        )

    def trainer(self, **changes: Any) -> TrainerConfig:
        """Optimiser and packing. Everything is float32, so that processors with and without bfloat16 do the same."""
        return TrainerConfig(**{"packing": "rows", "micro_tokens": 2**20, "dtype": "float32", **changes})

    def generator(self, **changes: Any) -> GeneratorConfig:
        """The generator to go with it."""
        return GeneratorConfig(**{"max_context": self.context, "dtype": "float32", **changes})


def train(
    algorithm: AlgorithmConfig,
    *,
    seed: int,
    job: Job | None = None,
    lag: int = 0,
    rounds: int = 1,
    offline: ExamplesConfig | None = None,
    experts: ExamplesConfig | None = None,
    control: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the warm-started model of `seed` and say how that went. `also` names further metrics of a step to keep.

    `control` and `trainer` change fields of those sections, such as `{"minibatches": 4}`. What comes back: `accuracy` on
    held-out problems, greedy, and `start`, the same before; `reward`, the mean of the last tenth of the steps, and
    `mean_reward`, of all; `ess`, `clipped`, `entropy`, `lag` and what is in `also`, means of the last tenth; `diverged`, 1 if a
    loss was not finite, in which case nothing is left to judge and `accuracy` and `reward` are 0; `cpu`, seconds; and `curves`.
    """
    job = job or Job()
    if lag and rounds > 1:
        raise ConfigError(
            "data are either of a constant lag or made in rounds",
            given=f"lag {lag}, rounds {rounds}",
            expected="one of them",
            todo="drop one",
        )
    config = RunConfig(
        model=job.model(str(warm_start(job, seed)) if job.warm_accuracy else ""),
        task=job.task,
        algorithm=algorithm,
        sampling=Sampling(max_tokens=job.max_tokens),
        control=ControllerConfig(
            **{
                "steps": job.steps,
                "groups": job.groups,
                "group_size": job.group_size,
                "max_lag": lag or rounds - 1,
                "publish_every": rounds,
                "window": 1,
                "stream": job.groups,
                "decode_steps": job.max_tokens,
                "eval_every": 0,
                "final_eval_prompts": job.heldout,
                "sample_every": job.steps * job.groups,
                **(control or {}),
            }
        ),
        generator=job.generator(),
        reward=RewardConfig(threads=False),
        trainer=job.trainer(**{"lr": job.lr, "warmup_steps": job.lr_warmup, **(trainer or {})}),
        placement=PlacementConfig(kind="inline", schedule="serial", threads=1),
        offline=offline,
        experts=experts,
        seed=seed,
    )
    kept, began, diverged = Kept(also), time.process_time(), False
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = asyncio.run(launch(config, Path(folder), kept, checkpoint_at_end=False))
            if not outcome.finished:
                raise KeyboardInterrupt
        except Diverged:
            diverged = True
    return kept.result(config.control.steps, diverged) | {"cpu": time.process_time() - began}


class Kept:
    """A sink that keeps what a claim is about."""

    def __init__(self, also: Sequence[str] = ()) -> None:
        self.curves: dict[str, list[float]] = {name: [] for name in (*CURVES, *also)}
        self._also = also
        self.accuracies: list[float] = []

    def step(self, record: StepRecord) -> None:
        for name, values in self.curves.items():
            value = record.metrics.get(name, float("nan"))
            values.append(float(value) if isinstance(value, float | int) else float("nan"))

    def evaluation(self, record: Evaluation) -> None:
        assert isinstance(record, EvalRecord), "these runs train language models"
        self.accuracies.append(record.accuracy)

    def event(self, record: Event) -> None:
        """Not kept."""

    def sample(self, record: SampleRecord) -> None:
        """Not kept."""

    def status(self, record: Status) -> None:
        """Not kept."""

    def close(self) -> None:
        """Nothing to close."""

    def result(self, steps: int, diverged: bool) -> dict[str, Any]:
        """See `train`."""
        rewards = self.curves["reward/mean"] + [0.0] * (steps - len(self.curves["reward/mean"]))
        names = {"ess": "ess", "clipped": "ratio/clipped", "entropy": "entropy", "lag": "lag/mean"}
        return {
            "accuracy": 0.0 if diverged else self.accuracies[-1],
            "start": self.accuracies[0],
            "reward": last_tenth(rewards),
            "mean_reward": sum(rewards) / steps,
            **{short: last_tenth(self.curves[name]) for short, name in names.items()},
            **{name: last_tenth(self.curves[name]) for name in self._also},
            "diverged": float(diverged),
            "curves": {name: thinned(values) for name, values in self.curves.items()},
        }


# --- the warm start -----------------------------------------------------------------------------------------------------------


def warm_start(job: Job, seed: int) -> Path:
    """The weights that every arm of `seed` begins with: demonstrations are imitated until `job.warm_accuracy` is reached. Made
    once per job, seed and code, and kept in the user's cache. Raises `ConfigError` if that takes more than `job.warm_limit`
    steps."""
    parts = (configs.dumps(job.model()), configs.dumps(job.task), job.warm_accuracy, job.warm_lr, job.warm_batch, seed)
    code = digest(Path(__file__))
    name = hashlib.sha256(repr((parts, code)).encode()).hexdigest()[:24]
    file = cache_directory() / "claims" / f"warm-{name}.safetensors"
    if file.is_file():
        return file
    task, how = job.task.build(), sft.Config()
    demonstrations = Stream(Solutions().build(task), seed)
    learner = TrainerExecutor(job.model(), how, job.trainer(seed=seed), inprocess.publisher())
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "policy.safetensors"
        for step in range(job.warm_limit):
            batch = [demonstrations.at(step * job.warm_batch + i) for i in range(job.warm_batch)]
            learner.warm_start(batch, how, job.warm_lr)
            if step % 5 == 4:
                learner.save(folder)
                if accuracy(job, task, weights) >= job.warm_accuracy:
                    break
        else:
            raise ConfigError(
                "the warm start does not reach its accuracy",
                given=f"{accuracy(job, task, weights):.1%} after {job.warm_limit} steps",
                expected=f"{job.warm_accuracy:.1%}",
                todo="raise warm_limit or warm_lr of the job, or lower warm_accuracy",
            )
        learner.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}-{os.getpid()}")
        partial.write_bytes(weights.read_bytes())
        partial.rename(file)
    return file


def accuracy(job: Job, task: Task, weights: Path, num: int = 256) -> float:
    """Share of the first `num` held-out problems that greedy answers solve."""
    prompts = task.heldout[:num]
    answers = respond(job, str(weights), prompts, 1, Sampling(temperature=0.0, max_tokens=job.max_tokens), seed=0)
    scores = [task.accuracy(scored(task, p, a)) for p, (a,) in zip(prompts, answers, strict=True)]
    return sum(scores) / len(scores)


def respond(
    job: Job, weights: str, prompts: Sequence[Prompt], num: int, sampling: Sampling, *, seed: int
) -> list[list[Trajectory]]:
    """`num` responses of the policy in the file `weights` to each of `prompts`, made by the engine's own generator."""
    generator = GeneratorExecutor(job.model(weights), job.generator(slots=num * len(prompts)), inprocess.subscriber())
    orders = [
        Request(item=i, prompt=prompt, num_samples=num, sampling=sampling, seed=seed * len(prompts) + i)
        for i, prompt in enumerate(prompts)
    ]
    report = generator.advance(orders, None, sampling.max_tokens)
    found = {(done.item, done.sample): done.outcome for done in report.finished}
    generator.close()
    return [[t for s in range(num) if isinstance(t := found[i, s], Trajectory)] for i in range(len(prompts))]


def scored(task: Task, prompt: Prompt, response: Trajectory) -> RewardResult:
    """The task's reward for a response."""
    result = task.reward(prompt_text(prompt), response.text, prompt.meta)
    return result if isinstance(result, RewardResult) else RewardResult(float(result))


# --- data sets ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A data set of responses by the policy in a file of weights, scored, with its log-probs. A response that was cut off, or
    that has a token without a text, is left out: those of a data set are texts that end."""

    job: Job
    """The job whose model and task it is for."""
    weights: str
    """The policy's weights, such as those of `warm_start`."""
    prompts: int = 512
    """Training prompts that are answered."""
    group_size: int = 8
    """Responses to each."""
    seed: int = 0
    """Seed of the draws."""

    def build(self, task: Task) -> Sequence[Example]:
        prompts = task.train[: self.prompts]
        sampling = Sampling(max_tokens=self.job.max_tokens)
        answers = respond(self.job, self.weights, prompts, self.group_size, sampling, seed=self.seed)
        whole = [[t for t in group if t.stop is Stop.EOS and t.num_actions == len(t.text) + 1] for group in answers]
        return tuple(
            Example(
                uid=prompt.uid,
                prompt=prompt,
                responses=tuple(t.text for t in group),
                rewards=tuple(scored(task, prompt, t) for t in group),
                logps=tuple(tuple(t.logp_T[t.action_T].tolist()) for t in group),
            )
            for prompt, group in zip(prompts, whole, strict=True)
            if group
        )
