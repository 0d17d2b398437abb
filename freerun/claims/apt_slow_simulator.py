"""With a slow simulator, collecting and learning side by side reaches the same return in less time than taking turns.

Simulated seconds: the actors and the trainer are those that ship, and what their calls take is stated (`TIMES`). In turns
nothing overlaps, so a run in turns is the same at every delay and its time is a sum; side by side every delay is a run of its
own. `bench/slow_simulator.py` measures real seconds.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.actors.environment import ActorConfig
from freerun.algorithms.control import sac
from freerun.claims.base import Arm, Claim, Expectation
from freerun.env_schedule import EnvSchedule
from freerun.metrics import TrialRecord
from freerun.plan.simulated import Constant
from freerun.plan.timed_control import ControlTimes, Simulated, simulate
from freerun.recipes import pendulum_apt
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase

WANTED = -250.0
"""Mean return of six episodes at which a policy counts as good: an untrained one has -1200, the best about -150."""
TIMES = ControlTimes(act=0.0005, update=0.005, publish=0.001)
"""An update of 64 x 64 networks with 64 rows, measured on one core; what a step takes is the delay."""
DELAYS = {"20 ms": 0.02, "80 ms": 0.08}
"""Seconds of a step of the simulator."""
STEPS = 6_000
"""Environment steps after which a run counts as too slow."""


def config(seed: int, *, actors: int, envs: int, ahead: int, most: float) -> ControlRun:
    recipe = pendulum_apt.recipe()
    phase = Phase(env_steps=STEPS, start=500, random=500, utd_most=most)
    control = EnvSchedule(
        phases=(phase,), chunk=8, updates=8, ahead=ahead, evaluations=24, eval_episodes=6, final_eval_episodes=0
    )
    actor, trainer = ActorConfig(envs=envs), replace(recipe.trainer, batch=64)
    return replace(recipe, control=control, actor=actor, actors=actors, trainer=trainer, seed=seed)


def reached(trial: TrialRecord) -> bool:
    return trial.mean >= WANTED


def numbers(ran: Simulated, seconds: float, taken: int) -> Mapping[str, Any]:
    """`log2_seconds` is compared, so that a difference of 1 is a factor of 2."""
    found = ran.first(reached)
    return {
        "log2_seconds": math.log2(seconds),
        "seconds_to_return": seconds,
        "steps": taken,
        "updates": ran.updates,
        "reached": float(found is not None),
        "returns": [round(trial.mean) for trial in ran.trials],
    }


@functools.cache
def taking_turns(seed: int, envs: int) -> Simulated:
    """Without the time of the simulator's steps."""
    times = replace(TIMES, step=Constant(0.0))
    return simulate(config(seed, actors=1, envs=envs, ahead=0, most=0.0), times, until=reached)


def turns(delay: float, envs: int) -> Arm:
    """The synchronous runner: `envs` environments, all stepped at once, then the updates that their steps make due."""

    def run(seed: int) -> Mapping[str, Any]:
        ran = taking_turns(seed, envs)
        end = ran.first(reached) or ran.trials[-1]
        return numbers(ran, end.seconds + end.taken / envs * delay, end.taken)

    return run


def aside(delay: float) -> Arm:
    """APT: four actors with an environment each, and a trainer that makes one to four updates per step, as time allows."""

    def run(seed: int) -> Mapping[str, Any]:
        ran = simulate(config(seed, actors=4, envs=1, ahead=4, most=4.0), replace(TIMES, step=Constant(delay)), until=reached)
        end = ran.first(reached) or ran.trials[-1]
        return numbers(ran, end.seconds, end.taken)

    return run


def claim() -> Claim:
    arms: dict[str, Arm] = {}
    expected = []
    for name, delay in DELAYS.items():
        arms |= {f"turns, 1 at {name}": turns(delay, 1), f"turns, 4 at {name}": turns(delay, 4), f"apt at {name}": aside(delay)}
        expected.append(Expectation(better=f"apt at {name}", worse=f"turns, 4 at {name}"))
        expected.append(Expectation(better=f"apt at {name}", worse=f"turns, 1 at {name}", margin=1.0))
    return Claim(
        sentence=(
            "With a simulator that takes 20 or 80 ms a step, four actors beside the trainer reach a return of -250 on Pendulum "
            "in less time than four environments in turns with it, and in less than half the time of one environment in turns."
            "of one environment in turns; and in real time, at 20 ms, they do the same work in less than half the time."
        ),
        paper="APT (arXiv 2401.11349)",
        method=sac,
        arms=arms,
        metric="log2_seconds",
        better="lower",
        expected=tuple(expected),
        minutes=5.0,
    )
