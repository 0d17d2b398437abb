"""Demonstrations in procedurally generated rooms, imitated before PPO, between its steps, or both; how diverse they should be.

Levels of demonstrations and of evaluations are drawn from two thousand million, so policies are judged where nobody was shown
the way.
"""

from collections.abc import Mapping
from typing import Any

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import ppo_imitation
from freerun.claims import control
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job
from freerun.store.phases import Phase, Portion
from freerun.tasks.minigrid import GridDemos

ROOMS = GymConfig(id="MiniGrid-MultiRoom-N2-S4-v0", modules=("minigrid",), see="symbols")
JOB = Job(
    env=ROOMS,
    scores=GridDemos(env=ROOMS, levels=1, episodes=1),
    batch=256,
    envs=8,
    chunk=64,
    evaluations=12,
    episodes=40,
    last_episodes=100,
)
TRAINER = {"epochs": 4, "minibatches": 4, "clip_norm": 0.5, "eps": 1e-5}
DIVERSE = GridDemos(env=ROOMS)
"""Fifty levels, each once."""
FLAWED = GridDemos(env=ROOMS, random=0.3)
"""The same, but for three actions in ten, which are random."""
FEW = GridDemos(env=ROOMS, levels=2)
"""Two levels, twenty-five times each, without a flaw."""
DEMOS = (Portion(source="dataset"),)
FRAMES = 24_576


def arm(*, before: int = 0, times: int = 0, online: bool = True, data: GridDemos = DIVERSE) -> Arm:
    """`before` updates of imitation, then PPO with `times` of them after each step."""

    def run(seed: int) -> Mapping[str, Any]:
        phases = [Phase(name="before", updates=before, sources=DEMOS, off=("policy", "value"))] if before else []
        phases += [Phase(env_steps=FRAMES, sources=DEMOS if times else ())] if online else []
        shown = data if before or times else None
        method = ppo_imitation.Config(lr=1e-3, times=times)
        return control.train(method, phases=phases, seed=seed, job=JOB, data=shown, trainer=TRAINER)

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Over 24,576 steps in two rooms that are new in every episode, PPO that has imitated fifty demonstrations before, "
            "or imitates them in between, or both, has a higher mean return than PPO alone; and fifty levels with three random "
            "actions in ten teach imitation more than two levels without a flaw."
        ),
        paper="Using Offline Data to Speed-up RL in Procedurally Generated Environments (arXiv 2304.09825)",
        method=ppo_imitation,
        arms={
            "ppo": arm(),
            "before": arm(before=1_000),
            "between": arm(times=5),
            "both": arm(before=1_000, times=5),
            "imitation of fifty levels with flaws": arm(before=2_000, online=False, data=FLAWED),
            "imitation of two levels": arm(before=2_000, online=False, data=FEW),
        },
        metric="mean",
        expected=(
            *(Expectation(better=one, worse="ppo") for one in ("before", "between", "both")),
            Expectation(better="imitation of fifty levels with flaws", worse="imitation of two levels", metric="score"),
        ),
        minutes=6.0,
    )
