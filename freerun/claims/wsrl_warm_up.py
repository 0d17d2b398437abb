"""Fine-tuning needs no recorded data, if the pre-trained policy first plays for a while without learning."""

from collections.abc import Mapping
from typing import Any

from freerun.algorithms.control import wsrl
from freerun.claims.base import Arm, Claim, Expectation
from freerun.claims.control import Job, Made, train
from freerun.store.phases import Phase, Portion

DATA = Made(grade="medium", episodes=20)
OFFLINE, WARM, ONLINE = 1_000, 500, 1_000
UNIT = 50
"""Steps or updates between two evaluations."""


def arm(*, warm: bool = True, keep: bool = False, conservative: bool = False) -> Arm:
    """`offline` is the score at the switch, `online` the mean over all learning steps, `lowest` of them the least."""

    def run(seed: int) -> Mapping[str, Any]:
        replay, dataset = Portion(source="replay"), Portion(source="dataset")
        offline = Phase(name="offline", updates=OFFLINE, sources=(dataset,))
        online = Phase(
            env_steps=ONLINE,
            utd=2.0,
            start=0 if warm else 64,
            every={"actor": 2},
            sources=(replay, dataset) if keep else (replay,),
            settings={"conservatism": float(conservative)},
        )
        phases = (offline, Phase(name="warm-up", env_steps=WARM, utd=0.0), online) if warm else (offline, online)
        job = Job(batch=64, chunk=4, envs=2, evaluations=sum(p.env_steps + p.updates for p in phases) // UNIT)
        algorithm = wsrl.Config(members=5, num_actions=4, hidden=(64, 64), actor_lr=1e-3, critic_lr=1e-3)
        numbers = train(algorithm, phases=phases, seed=seed, data=DATA, job=job, watch=("algorithm/q",))
        scores = [*numbers["scores"], numbers["score"]]
        learning = scores[-ONLINE // UNIT :]
        return numbers | {
            "offline": scores[OFFLINE // UNIT - 1],
            "online": sum(learning) / len(learning),
            "lowest": min(learning),
        }

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "From 20 episodes of a mediocre policy of Pendulum, 1000 updates offline, then 1000 steps online with two "
            "updates each: with 500 steps of warm-up and no data kept, the least score online is above that without the "
            "warm-up, and the mean score is above that of keeping the data in half of each batch."
        ),
        paper="WSRL (arXiv 2412.07762)",
        method=wsrl,
        arms={
            "warm-up": arm(),
            "no warm-up": arm(warm=False),
            "no warm-up, data kept": arm(warm=False, keep=True),
        },
        metric="online",
        expected=(
            Expectation(better="warm-up", worse="no warm-up", metric="lowest"),
            Expectation(better="warm-up", worse="no warm-up, data kept"),
        ),
        minutes=3.0,
    )
