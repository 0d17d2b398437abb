"""A few real steps and a simulator with twice the gravity: H2O against each alone, and against both as if they were one."""

from collections.abc import Mapping
from typing import Any

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import cql, h2o, sac
from freerun.algorithms.control_base import ControlConfig
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, Made
from freerun.store.phases import Phase

REAL, SIMULATED = GymConfig(id="Pendulum-v1"), GymConfig(id="Pendulum-v1", physics={"g": 20.0})
DATA = Made(grade="medium-replay", episodes=20)
"""4,000 steps of a training run, up to a third of the way to its last policy."""
JOB = Job(env=SIMULATED, judge_env=REAL, evaluations=8, episodes=8, last_episodes=50)
STEPS = 8_000


def simulator(method: ControlConfig, data: Made | None) -> Arm:
    """Actors in the simulator, beside the data or without."""

    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=STEPS, start=1_000, random=1_000)
        return control.train(method, phases=[phase], seed=seed, job=JOB, data=data)

    return run


def offline(method: ControlConfig) -> Arm:
    """The data alone."""

    def run(seed: int) -> Mapping[str, Any]:
        return control.train(method, phases=[Phase(updates=STEPS)], seed=seed, job=JOB, data=DATA)

    return run


def claim() -> Claim:
    hidden = (64, 64)
    own = sac.Config(actor_lr=1e-3, hidden=hidden)
    return Claim(
        sentence=(
            "With 4,000 real steps and a simulator whose gravity is twice the real one, H2O ends with a score on the real "
            "pendulum that is above those of SAC in the simulator, of SAC on both as if they were one, and of CQL on the data."
        ),
        paper="H2O (arXiv 2206.13464)",
        method=h2o,
        arms={
            "h2o": simulator(h2o.Config(hidden=hidden, lr=1e-3), DATA),
            "sac in the simulator": simulator(own, None),
            "sac on both": simulator(own, DATA),
            "cql on the data": offline(cql.Config(weight=1.0, num_actions=4, hidden=hidden, actor_lr=3e-4, critic_lr=1e-3)),
        },
        metric="score",
        expected=tuple(
            Expectation(better="h2o", worse=other) for other in ("sac in the simulator", "sac on both", "cql on the data")
        ),
        minutes=8.0,
    )
