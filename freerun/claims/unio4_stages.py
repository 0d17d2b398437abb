"""PPO's objective improves clones of recorded episodes without playing, and goes on with actors without a dip."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import unio4
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, Made, since, switched, train
from freerun.recipes.pendulum_unio4 import OFFLINE, stage
from freerun.store.phases import Phase

DATA = Made(grade="medium")
STEPS = 10_000
UNIT = 500
"""Updates or steps between two evaluations."""


def arm(*, improve: bool = True, offline: bool = True) -> Arm:
    """`offline` is the score at the switch, `online` the mean of all since, `floor` the least of them minus the first."""

    def run(seed: int) -> Mapping[str, Any]:
        values, clone = stage("values", 3_000, "values", "model"), stage("clone", 1_500, "clone")
        # Without improvement the best clone is chosen, and one update later the actors take over.
        better = stage("improve", 500, "improve", "old") if improve else stage("choose", 500, "old", "model")
        before = (values, clone, better) if offline else ()
        phases = (*before, Phase(env_steps=STEPS, off=OFFLINE))
        work = sum(phase.updates + phase.env_steps for phase in phases)
        job = Job(batch=64, chunk=128, evaluations=work // UNIT)
        algorithm = unio4.Config(
            members=3,
            models=3,
            hidden=(64, 64),
            offline_lr=1e-3,
            lr=3e-4,
            value_lr=1e-3,
            entropy=0.0,
            clip=0.2,
            horizon=50,
        )
        trainer = {"observations": "data", "rewards": "range", "epochs": 10, "minibatches": 4, "clip_norm": 0.5}
        numbers = train(algorithm, phases=phases, seed=seed, data=DATA, job=job, trainer=trainer)
        way = since(numbers, 1.0 - STEPS / work)
        return numbers | switched(way) | {"floor": min(way[:10]) - way[0]}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "From 20000 steps of a mediocre policy of Pendulum: the best of three clones that PPO's objective improved for "
            "500 updates, as judged in a model, scores higher than the best of three clones, and over the 10000 steps of "
            "PPO that follow the mean score is higher than that of PPO from scratch."
        ),
        paper="Uni-O4 (arXiv 2311.03351)",
        method=unio4,
        arms={"improved": arm(), "cloned": arm(improve=False), "ppo": arm(offline=False)},
        metric="online",
        expected=(
            Expectation(better="improved", worse="cloned", metric="offline"),
            Expectation(better="improved", worse="ppo"),
        ),
        minutes=4.0,
    )
