"""What a run does before RL: a supervised start, the value of prompts under the policy that it ends with, and the choice of
data that follows from that value. The trainer is called in small steps, so that a signal ends a stage between two.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from freerun.algorithms.base import AlgorithmConfig
from freerun.controller import Controller
from freerun.errors import ConfigError, DataError
from freerun.metrics import Event
from freerun.recipes.base import ReferenceValueConfig, RunConfig, WarmStartConfig
from freerun.schedule import Stream
from freerun.tasks.base import Task
from freerun.types import Example


@dataclass(frozen=True, slots=True)
class Data:
    """What a run reads besides prompts: a data set in their place, demonstrations beside them, and those of the stages."""

    offline: Sequence[Example] | None
    experts: Sequence[Example]
    warm_start: Sequence[Example]
    value: Sequence[Example]

    @staticmethod
    def of(config: RunConfig, task: Task, *, begins: bool) -> "Data":
        """Read, or make, all of it: before anything is spawned, because making may take long and failing is then cheap. Only a
        run that `begins` has stages."""
        offline = config.offline.build(task) if config.offline is not None else None
        warm = config.warm_start if begins else None
        value = config.reference_value.examples if begins and config.reference_value is not None else None
        return Data(
            offline=offline,
            experts=config.experts.build(task) if config.experts is not None else (),
            warm_start=warm.examples.build(task) if warm is not None else (),
            value=value.build(task) if value is not None else offline or (),
        )


async def before_training(controller: Controller, config: RunConfig, data: Data) -> None:
    """The stages of a run that begins, in their order; none is finished if the controller is stopping."""
    if config.warm_start is not None:
        await warm_start(controller, config.warm_start, data.warm_start, config.seed)
    if config.reference_value is not None and not controller.stopping:
        await reference_value(controller, config.reference_value, data.value, config.seed)


async def warm_start(controller: Controller, stage: WarmStartConfig, examples: Sequence[Example], seed: int) -> None:
    """The supervised stage on these demonstrations."""
    for step, lesson in enumerate(lessons(stage, examples, seed)):
        doing = f"supervised warm start, step {step + 1} of {stage.steps}"
        await controller.tracker.call(controller.trainer, "warm_start", *lesson, what="warm-start", doing=doing)
        if controller.stopping:
            return


def lessons(
    stage: WarmStartConfig, examples: Sequence[Example], seed: int
) -> Iterator[tuple[list[Example], AlgorithmConfig, float]]:
    """What the trainer's `warm_start` is given, step by step: demonstrations, objective, learning rate."""
    stream = Stream(examples, seed)
    for step in range(stage.steps):
        batch = [stream.at(step * stage.batch + i) for i in range(stage.batch)]
        yield batch, stage.algorithm, stage.learning_rate(step)


async def reference_value(controller: Controller, stage: ReferenceValueConfig, examples: Sequence[Example], seed: int) -> None:
    """Fit the value of prompts. Each epoch leaves an event with the mean squared error on the prompts held back, and that of
    the best constant. Raises `ConfigError` if there is nothing to fit it to, `DataError` if that cannot be used."""
    data = list(examples)
    held = round(stage.held_back * len(data))
    if not 0 < held < len(data):
        raise ConfigError(
            "the value of the reference policy has nothing to be fitted to, or to be judged by",
            given=f"{len(data)} scored prompts, reference_value.held_back = {stage.held_back}",
            expected="at least one prompt on each side",
            todo="set reference_value.examples or offline in the recipe, or change --reference-value.held-back",
        )
    random.Random(f"{seed}/held back").shuffle(data)
    rest, judges = data[held:], data[:held]
    for epoch in range(stage.epochs):
        random.Random(f"{seed}/{epoch}").shuffle(rest)
        for batch in _chunks(rest, stage.batch):
            await _ask(controller, "fit_value", batch, stage.head, doing=f"fitting the value of prompts, epoch {epoch + 1}")
            if controller.stopping:
                return
        error = await _ask(controller, "judge_value", judges, doing=f"judging the value of prompts, epoch {epoch + 1}")
        now, detail = controller.tracker.now(), {"epoch": epoch + 1, "error": error, "constant": _spread(judges)}
        controller.sink.event(Event(executor=controller.trainer.name, what="value", start=now, end=now, detail=detail))


async def select(controller: Controller, stage: ReferenceValueConfig, offline: Sequence[Example], seed: int) -> None:
    """Let the run draw its items as `stage.select` says: all of them, or single responses by how much better than expected they
    are. Raises `DataError` if none is."""
    if stage.select == "all":
        return
    kept: list[Example] = []
    advantages: list[float] = []
    for batch in _chunks(offline, stage.batch):
        values = await _ask(controller, "values", batch, doing="estimating the value of prompts")
        for example, value in zip(batch, values, strict=True):
            for one in responses(example):
                if one.rewards[0].value > value:
                    kept.append(one)
                    advantages.append(one.rewards[0].value - value)
    if not kept:
        raise DataError(
            "no response of the data set is better than the reference policy may expect",
            given=f"{sum(len(example.responses) for example in offline)} responses",
            expected="at least one with a reward above the value of its prompt",
            todo="use data with better responses, or --reference-value.select all",
        )
    controller.intake.prompts = Stream(kept, seed, advantages if stage.select == "priority" else ())


def responses(example: Example) -> Iterator[Example]:
    """Each scored response of an example as an example of its own."""
    for index, reward in enumerate(example.rewards):
        logps = example.logps[index : index + 1]
        one = (example.responses[index],)
        yield replace(example, uid=f"{example.uid}/{index}", responses=one, rewards=(reward,), logps=logps)


async def _ask(controller: Controller, method: str, *args: Any, doing: str) -> Any:
    return await controller.tracker.call(controller.trainer, method, *args, what="value", doing=doing)


def _chunks(data: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (data[first : first + size] for first in range(0, len(data), size))


def _spread(examples: Sequence[Example]) -> float:
    """Mean squared error of the best constant."""
    rewards = [reward.value for example in examples for reward in example.rewards]
    mean = fmean(rewards)
    return fmean((reward - mean) ** 2 for reward in rewards)
