"""Control runs on a simulated clock: what overlaps, what takes turns, and that nothing is lost on the way."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from freerun.actors.environment import ActorConfig, Step
from freerun.algorithms.control import sac
from freerun.env_schedule import EnvSchedule
from freerun.plan.simulated import Constant, Uniform
from freerun.plan.timed_control import ControlTimes, TimedTrainer, simulate
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import Spaces

TIMES = ControlTimes(step=Constant(1.0), act=0.0, update=1.0, publish=0.0)


@dataclass(frozen=True)
class Walk:
    """Episodes of seven steps in which one sees how many steps lie behind."""

    def build(self, *, picture=False):
        return Walking()


class Walking:
    spaces = Spaces(obs=(1,), actions=1, discrete=False)

    def __init__(self):
        self.steps = 0

    def reset(self, seed):
        self.steps = 0
        return np.zeros(1, np.float32)

    def step(self, action):
        self.steps += 1
        return Step(np.full(1, self.steps, np.float32), -float(action[0] ** 2), False, self.steps == 7)

    def close(self):
        pass


def config(*, actors=1, envs=1, ahead=0, utd=0.5, most=0.0, start=8):
    phase = Phase(env_steps=80 + start, start=start, random=start, utd=utd, utd_most=most)
    return ControlRun(
        env=Walk(),
        algorithm=sac.Config(hidden=(4,)),
        control=EnvSchedule(phases=(phase,), chunk=4, ahead=ahead, evaluations=0, final_eval_episodes=0),
        sources=(ReplayConfig(capacity=200),),
        actor=ActorConfig(envs=envs),
        actors=actors,
        trainer=ControlTrainerConfig(batch=4),
    )


@pytest.mark.parametrize("delay", [0.1, 1.0, 3.0])
def test_in_turns_everything_adds_up(delay):
    ran = simulate(config(), replace(TIMES, step=Constant(delay)))
    assert (ran.taken, ran.updates) == (88, 40)
    assert ran.seconds == pytest.approx(88 * delay + 40)


def test_environments_of_one_actor_are_stepped_at_the_same_time():
    assert simulate(config(envs=4), TIMES).seconds == pytest.approx(96 / 4 + 40)


def test_side_by_side_the_slower_one_decides():
    """Two actors give two steps a second, which make one update due: both go on all the time."""
    ran = simulate(config(actors=2, ahead=2), TIMES)
    assert (ran.taken, ran.updates) == (88, 40)
    assert ran.seconds == pytest.approx(88 / 2 + 2, abs=2.0)
    slow = simulate(config(actors=2, ahead=2), replace(TIMES, update=4.0))
    assert slow.seconds == pytest.approx(8 / 2 + 40 * 4, abs=8.0)


@pytest.mark.parametrize(("delay", "least", "most"), [(0.25, 40, 40), (1.25, 80, 100), (100.0, 152, 152)])
def test_a_trainer_that_would_wait_makes_more_of_what_there_is_up_to_a_bound(delay, least, most):
    """At 0.25 s a step it has no time to spare; 80 steps of 1.25 s leave time for 100 updates; and 100 s for more than the two
    per step that may be made, which are those of all steps but the last four: what came last ends the run."""
    ran = simulate(config(actors=1, ahead=1, most=2.0), replace(TIMES, step=Constant(delay)))
    assert ran.taken == 88
    assert least <= ran.updates <= most


def test_nothing_is_lost_or_stored_twice(monkeypatch):
    stored = Counter()
    accumulate = TimedTrainer.accumulate

    def counting(self, chunks):
        for chunk in chunks:
            rows = zip(chunk.columns["episode"].flatten().tolist(), chunk.columns["step"].flatten().tolist(), strict=True)
            stored.update(rows)
        return accumulate(self, chunks)

    monkeypatch.setattr(TimedTrainer, "accumulate", counting)
    ran = simulate(config(actors=3, envs=2, ahead=3, most=1.0), replace(TIMES, step=Uniform(0.1, 3.0)))
    assert set(stored.values()) == {1}
    assert sum(stored.values()) == ran.taken == 88
    last = {episode: max(step for e, step in stored if e == episode) for episode, _ in stored}
    assert all((episode, step) in stored for episode, end in last.items() for step in range(end + 1))


def test_the_same_run_is_simulated_twice_alike():
    times = replace(TIMES, step=Uniform(0.5, 2.0))
    first, again = (simulate(config(actors=2, ahead=2, most=2.0), times) for _ in range(2))
    assert (first.seconds, first.updates) == (again.seconds, again.updates)
