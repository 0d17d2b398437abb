"""The beginning of a training run in reality, and a simulator with twice the gravity: H2O on a robot, against each alone.

The data set is that of `freerun dataset make halfcheetah`, which has to be there before: to make it anew for every version of
the code would take a quarter of an hour each.
"""

from collections.abc import Mapping
from typing import Any

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import cql, h2o, sac
from freerun.algorithms.control_base import ControlConfig
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job
from freerun.datasets.grades import Grade
from freerun.store.phases import Phase

REAL, SIMULATED = GymConfig(id="HalfCheetah-v5"), GymConfig(id="HalfCheetah-v5", physics={"gravity": 2.0})
DATA = Grade(env="halfcheetah", grade="medium-replay")
"""20,000 steps, from random ones on."""
JOB = Job(env=SIMULATED, judge_env=REAL, scores=DATA, evaluations=5, episodes=4, last_episodes=10)
STEPS = 20_000
HIDDEN = (128, 128)


def simulator(method: ControlConfig, data: Grade | None) -> Arm:
    """Actors in the simulator, beside the data or without."""

    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=STEPS, start=1_000, random=1_000)
        return control.train(method, phases=[phase], seed=seed, job=JOB, data=data)

    return run


def offline(method: ControlConfig) -> Arm:
    """The data alone, seen as the suite of recorded data does."""

    def run(seed: int) -> Mapping[str, Any]:
        phases, seen = [Phase(updates=STEPS)], {"observations": "data"}
        return control.train(method, phases=phases, seed=seed, job=JOB, data=DATA, trainer=seen)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With what SAC collected on the real HalfCheetah until it was a third as good as in the end, and a simulator whose "
            "gravity is twice the real one, H2O ends with a score on the real robot that is above those of SAC in the "
            "simulator and of CQL on the data, each after 20,000 updates."
        ),
        paper="H2O (arXiv 2206.13464)",
        method=h2o,
        arms={
            "h2o": simulator(h2o.Config(hidden=HIDDEN), DATA),
            "sac in the simulator": simulator(sac.Config(hidden=HIDDEN), None),
            "cql on the data": offline(cql.Config(num_actions=4, hidden=HIDDEN, actor_lr=1e-4, critic_lr=3e-4)),
        },
        metric="score",
        expected=tuple(Expectation(better="h2o", worse=other) for other in ("sac in the simulator", "cql on the data")),
        minutes=25.0,
    )
