"""The real controller on simulated executors: what a schedule costs, checked against arithmetic."""

import asyncio
import random

import pytest

from freerun.controller import Controller
from freerun.errors import StaleItem
from freerun.metrics import StepRecord
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement
from freerun.plan.simulated import (
    Constant,
    GeneratorTimes,
    LogNormal,
    SimulatedGenerator,
    SimulatedRewarder,
    SimulatedTrainer,
    TrainerTimes,
    Uniform,
    VirtualClock,
)
from freerun.schedule import ControllerConfig
from freerun.types import Group, Prompt, Request, RewardResult, Sampling

STEPS, GROUPS, SIZE, LENGTH = 10, 2, 3, 8
GENERATE = GeneratorTimes(length=Constant(LENGTH), slots=100, step=0.5, per_response=0.25, prefill=0.125, swap=1.0)
TRAIN = TrainerTimes(per_token=0.0625, update=2.0, publish=0.5)
SCORE = 4.0


class Steps:
    """A sink that keeps the records of steps."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def ignore(self, *record: object) -> None:
        pass

    event = sample = evaluation = status = close = ignore


def simulate(max_lag: int, generate: GeneratorTimes = GENERATE, generators: int = 1) -> tuple[float, list[float]]:
    """Simulated seconds of a run of the real controller, and the mean lag of each of its steps."""
    clock, sink = VirtualClock(), Steps()
    config = ControllerConfig(
        steps=STEPS, groups=GROUPS, group_size=SIZE, max_lag=max_lag, decode_steps=LENGTH, stream=GROUPS, final_eval_prompts=0
    )

    async def main() -> float:
        placement = InlinePlacement(schedule="virtual", duration=clock.taken)
        names = [f"generator-{i}" for i in range(generators)]
        specs = [ExecutorSpec(name=n, factory=SimulatedGenerator, args=(generate, clock)) for n in names]
        specs.append(ExecutorSpec(name="rewarder", factory=SimulatedRewarder, args=(Constant(SCORE), clock)))
        specs.append(ExecutorSpec(name="trainer", factory=SimulatedTrainer, args=(TRAIN, clock)))
        try:
            handles = await placement.spawn(specs)
            controller = Controller(
                config,
                placement=placement,
                generators=[handles[n] for n in names],
                rewarder=handles["rewarder"],
                trainer=handles["trainer"],
                prompts=[Prompt(f"p{i}", "") for i in range(100)],
                heldout=[],
                sampling=Sampling(),
                eval_sampling=Sampling(),
                accuracy=lambda result: result.value,
                sink=sink,
                seed=0,
            )
            await controller.run()
            return placement.now()
        finally:
            await placement.stop()

    seconds = asyncio.run(asyncio.wait_for(main(), 60))
    return seconds, [step.metrics["lag/mean"] for step in sink.steps]


def generation(groups: int) -> float:
    return 1.0 + 0.125 * groups + LENGTH * (0.5 + 0.25 * SIZE * groups)


TRAINING = 0.0625 * (1 + LENGTH) * SIZE * GROUPS + 2.0 + 0.5


def test_a_synchronous_run_takes_the_sum_of_its_phases():
    seconds, lags = simulate(max_lag=0)
    assert seconds == pytest.approx(0.5 + STEPS * (generation(GROUPS) + SCORE + TRAINING))
    assert lags == [0.0] * STEPS


def test_an_asynchronous_run_overlaps_its_phases_at_the_price_of_lag():
    synchronous, _ = simulate(max_lag=0)
    seconds, lags = simulate(max_lag=1)
    tokens = STEPS * GROUPS * SIZE * LENGTH
    assert seconds < 0.8 * synchronous
    assert seconds > 0.25 * tokens + STEPS * 1.0 * 0.5  # no faster than the generator, the slowest phase, can decode
    assert max(lags) == 1.0


def test_a_simulated_run_is_the_same_every_time():
    times = GeneratorTimes(length=LogNormal(20, 1.0), slots=4)
    first = simulate(max_lag=2, generate=times, generators=2)
    assert simulate(max_lag=2, generate=times, generators=2) == first
    assert 0.0 < max(first[1]) <= 2.0


def test_the_simulated_trainer_refuses_what_the_real_one_would():
    generator, trainer = SimulatedGenerator(GENERATE, VirtualClock()), SimulatedTrainer(TRAIN, VirtualClock(), max_lag=1)
    request = Request(item=0, prompt=Prompt("p", ""), num_samples=2, sampling=Sampling(), seed=0)
    report = generator.advance([request], trainer.start(), 100)
    group = Group(
        item=0,
        prompt=request.prompt,
        trajectories=tuple(f.outcome for f in report.finished),
        rewards=(RewardResult(0.0), RewardResult(1.0)),
    )
    for _ in range(2):
        trainer.accumulate([])
        trainer.finish_step()
    with pytest.raises(StaleItem):
        trainer.accumulate([group])


def test_a_response_that_spans_a_swap_carries_both_versions():
    generator, trainer = SimulatedGenerator(GENERATE, VirtualClock()), SimulatedTrainer(TRAIN, VirtualClock())
    request = Request(item=0, prompt=Prompt("p", ""), num_samples=1, sampling=Sampling(), seed=0)
    assert generator.advance([request], trainer.start(), 3).finished == ()
    report = generator.advance([], trainer.finish_step().ref, 100)
    assert report.finished[0].outcome.version_T.tolist() == [-1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert report.tokens == 5 and report.swap_seconds == 1.0


def test_distributions_draw_what_they_say():
    source = random.Random(0)
    assert Constant(3.0).draw(source) == 3.0
    draws = [Uniform(2.0, 4.0).draw(source) for _ in range(2000)]
    assert min(draws) >= 2.0 and max(draws) <= 4.0 and abs(sum(draws) / 2000 - 3.0) < 0.05
    draws = sorted(LogNormal(10.0, 1.0).draw(source) for _ in range(4001))
    assert abs(draws[2000] - 10.0) < 0.8
    assert 0.03 < sum(d > 50.0 for d in draws) / 4001 < 0.08
