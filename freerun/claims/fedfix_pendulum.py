"""Four clients of very different speed train one policy: adding up at fixed times is faster than waiting for the slowest.

Each client has a pendulum of its own mass, a replay and optimisers of its own; the server only sees what they changed. Seconds
are simulated: a piece of work takes its client 0.2 to 1 s, as in the paper's setting F-80.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freerun.claims.base import Arm, Claim, Expectation
from freerun.metrics import TrialRecord
from freerun.plan.timed_control import ControlTimes, simulate
from freerun.recipes import pendulum_fedfix
from freerun.recipes.control_base import ClientConfig
from freerun.store import rounds
from freerun.store.phases import Phase
from freerun.store.rounds import Arrivals, Interval, Synchronous

WANTED = -300.0
"""Mean return over all masses at which a policy counts as good."""
SECONDS = (1.0, 0.7333, 0.4667, 0.2)
SCHEMES: Mapping[str, tuple[rounds.Config, float]] = {
    "fedavg": (Synchronous(), 1.0),
    "async": (Arrivals(1), 0.25),
    "fedfix": (Interval(0.4), 0.5),
    "fedbuff": (Arrivals(2), 0.5),
}
"""Each with the server's step."""


def reached(trial: TrialRecord) -> bool:
    return trial.mean >= WANTED


def arm(name: str) -> Arm:
    scheme, lr = SCHEMES[name]

    def run(seed: int) -> Mapping[str, Any]:
        recipe = pendulum_fedfix.recipe()
        assert recipe.federation is not None, "the recipe is federated"
        clients = tuple(
            ClientConfig(env=client.env, seconds=seconds)
            for client, seconds in zip(recipe.federation.clients, SECONDS, strict=True)
        )
        federation = replace(recipe.federation, clients=clients, scheme=scheme, lr=lr)
        phase = Phase(env_steps=20_000, start=1_000, random=1_000, utd=0.5)
        control = replace(recipe.control, phases=(phase,), evaluations=40, eval_episodes=8, final_eval_episodes=0)
        ran = simulate(replace(recipe, federation=federation, control=control, seed=seed), ControlTimes(), until=reached)
        found = ran.first(reached)
        end = found or ran.trials[-1]
        return {
            "log2_seconds": math.log2(end.seconds),
            "seconds_to_return": end.seconds,
            "steps": end.taken,
            "rounds": end.step,
            "reached": float(found is not None),
            "returns": [round(trial.mean) for trial in ran.trials],
        }

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "Four clients that differ in speed by a factor of five reach a mean return of -300 on their pendulums in less time "
            "if the server adds up every 0.4 s (FedFix) than if it waits for all (FedAvg)."
        ),
        paper="A general theory of asynchronous federated optimisation (arXiv 2206.10189)",
        method=rounds,
        arms={name: arm(name) for name in SCHEMES},
        metric="log2_seconds",
        better="lower",
        expected=(Expectation(better="fedfix", worse="fedavg"),),
        minutes=6.0,
    )
