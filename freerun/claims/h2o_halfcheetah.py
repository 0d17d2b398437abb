"""Twenty real episodes of a cheetah and a simulator with twice the gravity: H2O against each alone.

The data set is that of `freerun dataset make halfcheetah`, which has to be there before: it takes an hour.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import cql, h2o, sac
from freerun.algorithms.control_base import ControlConfig
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job
from freerun.datasets.base import Episodes
from freerun.datasets.grades import Grade
from freerun.store.phases import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The beginning of a self-made data set."""

    data: Grade = field(default_factory=lambda: Grade(env="halfcheetah", grade="medium-replay"))
    """Which."""
    episodes: int = 20
    """So many episodes, of one of the four environments that SAC learned in: from its random steps on."""

    def build(self) -> Episodes:
        return control.first(self.data.build(), self.episodes)


REAL, SIMULATED = GymConfig(id="HalfCheetah-v5"), GymConfig(id="HalfCheetah-v5", physics={"gravity": 2.0})
STEPS = 20_000
JOB = Job(env=SIMULATED, judge_env=REAL, scores=Recorded(), evaluations=5, episodes=4, last_episodes=10)
HIDDEN = (128, 128)


def simulator(method: ControlConfig, data: Recorded | None) -> Arm:
    """Actors in the simulator, beside the data or without."""

    def run(seed: int) -> Mapping[str, Any]:
        phase = Phase(env_steps=STEPS, start=1_000, random=1_000)
        return control.train(method, phases=[phase], seed=seed, job=JOB, data=data)

    return run


def offline(method: ControlConfig) -> Arm:
    """The data alone."""

    def run(seed: int) -> Mapping[str, Any]:
        return control.train(method, phases=[Phase(updates=STEPS)], seed=seed, job=JOB, data=Recorded())

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With 20 real episodes of a training run and a simulator whose gravity is twice the real one, H2O ends with a "
            "score on the real HalfCheetah that is above those of SAC in the simulator and of CQL on the data, each with "
            "20,000 updates."
        ),
        paper="H2O (arXiv 2206.13464)",
        method=h2o,
        arms={
            "h2o": simulator(h2o.Config(hidden=HIDDEN), Recorded()),
            "sac in the simulator": simulator(sac.Config(hidden=HIDDEN), None),
            "cql on the data": offline(cql.Config(num_actions=4, hidden=HIDDEN)),
        },
        metric="score",
        expected=tuple(Expectation(better="h2o", worse=other) for other in ("sac in the simulator", "cql on the data")),
        minutes=40.0,
    )
