"""Who writes a data set: a language model that was taught first, or that an earlier run left, asked through the generator.

Everything happens in this process, and what it gives depends on the config alone.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from freerun.actors.generator import GeneratorConfig, GeneratorExecutor
from freerun.algorithms.language import sft
from freerun.errors import DataError
from freerun.models.base import LanguageModel, ModelConfig
from freerun.recipes.base import WarmStartConfig
from freerun.rewards.pool import RewardConfig, RewardPool
from freerun.schedule import stream_seed
from freerun.stages import lessons
from freerun.tasks.base import Task
from freerun.trainer.state import load_networks
from freerun.trainer.trainer import TrainerConfig, TrainerExecutor
from freerun.types import Failure, Prompt, Request, RewardRequest, RewardResult, Sampling, Trajectory
from freerun.weights import inprocess

STEPS = 64
"""Decode steps per call of the generator."""
MOST_SLOTS = 256
"""Responses that run at once, unless the generator's section says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """A language model with what it learnt. With the sections of a recipe it is the policy that the recipe's RL starts from."""

    model: ModelConfig
    """The network and its tokenizer."""
    warm_start: WarmStartConfig | None = None
    """What it is taught, or nothing."""
    checkpoint: str = ""
    """In place of that: the folder of a checkpoint, such as runs/NAME/checkpoints/step-00000060."""
    sampling: Sampling = field(default_factory=Sampling)
    """How it is asked."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How it is taught."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """How it generates."""
    seed: int = 0
    """Seed of initial weights, of the order of lessons and of sampling."""

    def answers(
        self, task: Task, prompts: Sequence[Prompt], samples: int
    ) -> tuple[list[tuple[Trajectory, ...]], LanguageModel]:
        """`samples` responses to each of `prompts`, and the model that wrote them. Raises `DataError` for a prompt that leaves
        no room for a response, `CheckpointError` for a checkpoint that does not fit."""
        slots = self.generator.slots or max(1, min(MOST_SLOTS, samples * len(prompts)))
        with closing(self.taught(task)) as teacher:
            generator = GeneratorExecutor(self.model, replace(self.generator, slots=slots), inprocess.subscriber())
            with closing(generator) as writer:
                requests = [
                    Request(item=i, prompt=prompt, num_samples=samples, sampling=self.sampling, seed=stream_seed(self.seed, i))
                    for i, prompt in enumerate(prompts)
                ]
                return _finished(writer, teacher, requests), teacher.model

    def taught(self, task: Task) -> TrainerExecutor:
        """The trainer that holds what the author learnt; the caller closes it."""
        config = replace(self.trainer, seed=self.seed, temperature=self.sampling.temperature)
        teacher = TrainerExecutor(self.model, sft.Config(), config, inprocess.publisher())
        if self.checkpoint:
            load_networks(Path(self.checkpoint) / "trainer", {"policy": teacher.model.model})
        elif self.warm_start is not None:
            for lesson in lessons(self.warm_start, self.warm_start.examples.build(task), self.seed):
                teacher.warm_start(*lesson)
        return teacher


def _finished(writer: GeneratorExecutor, teacher: TrainerExecutor, requests: Sequence[Request]) -> list[tuple[Trajectory, ...]]:
    answers: list[dict[int, Trajectory]] = [{} for _ in requests]
    report = writer.advance(requests, teacher.start(), STEPS)
    while True:
        for one in report.finished:
            if isinstance(one.outcome, Failure):
                raise DataError(
                    f"prompt '{requests[one.item].prompt.uid}' cannot be answered",
                    given=one.outcome.message,
                    expected="a response",
                    todo="shorten the prompt, or raise the context of the model",
                )
            answers[one.item][one.sample] = one.outcome
        if not (report.running or report.waiting):
            return [tuple(found[sample] for sample in sorted(found)) for found in answers]
        report = writer.advance((), None, STEPS)


def scored(task: Task, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[RewardResult]:
    """The task's reward of each completion. Raises `DataError` if one cannot be scored."""

    async def score() -> list[RewardResult | Failure]:
        pool = RewardPool(task.reward, RewardConfig())
        try:
            return await pool.score([RewardRequest(p, c) for p, c in zip(prompts, completions, strict=True)])
        finally:
            await pool.close()

    # A loop of its own, in a thread of its own, because the caller may be on one.
    with ThreadPoolExecutor(1) as thread:
        outcomes = thread.submit(asyncio.run, score()).result()
    results = []
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if isinstance(outcome, Failure):
            raise DataError(
                f"a response to prompt '{prompt.uid}' cannot be scored",
                given=f"{outcome.kind} in {outcome.where}: {outcome.message}",
                expected="a reward",
                todo="mend the task's reward function",
            )
        results.append(outcome)
    return results
