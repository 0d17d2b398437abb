"""With weights that undo how often clients take part, asynchronous federated training finds the optimum of the wanted mixture.

Every client pulls towards a centre of its own; the optimum of any mixture is a mean, so all limits are known. The fastest
client takes a fifth of the time of the slowest.
"""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.federated import aggregated, change
from freerun.store import rounds
from freerun.store.rounds import Arrivals, Interval, Scheme, Synchronous

CLIENTS, SIZE = 8, 5
SECONDS = [1.0 - 0.8 * i / (CLIENTS - 1) for i in range(CLIENTS)]
LOCAL_STEPS, LOCAL_LR = 5, 0.05
LONG, WARM = 800.0, 200.0
"""Seconds of a run, and those before which iterates do not enter its mean."""
SCHEMES: Mapping[str, tuple[Scheme, float]] = {
    "fedavg": (Synchronous(), 1.0),
    "async": (Arrivals(1), 1 / 16),
    "fedfix": (Interval(0.4), 1 / 5),
    "fedbuff": (Arrivals(4), 1 / 4),
}
"""Each with the server's step: the sooner a round ends, the smaller, so that all move about as far in a second."""


def trained(scheme: Scheme, lr: float, weights: list[float], centre: torch.Tensor) -> torch.Tensor:
    """The mean iterate of a run."""
    versions = [{"theta": torch.zeros(SIZE, dtype=torch.float64)}]
    total, count = torch.zeros(SIZE, dtype=torch.float64), 0
    for ended in rounds.played(scheme, SECONDS, LONG):
        changes = []
        for work in ended.works:
            sent = versions[work.version]
            pull = 1.0 - (1.0 - LOCAL_LR) ** LOCAL_STEPS
            local = {"theta": sent["theta"] + pull * (centre[work.client] - sent["theta"])}
            changes.append(change(local, sent))
        parts = [weights[work.client] for work in ended.works]
        versions.append(aggregated(versions[-1], changes, parts, lr=lr))
        if ended.time > WARM:
            total, count = total + versions[-1]["theta"], count + 1
    return total / count


def mixture(shares: list[float], centre: torch.Tensor) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64) @ centre


def arm(name: str, *, undone: bool) -> Arm:
    scheme, lr = SCHEMES[name]

    def run(seed: int) -> Mapping[str, Any]:
        make = torch.Generator().manual_seed(seed)
        centre = torch.randn(CLIENTS, SIZE, generator=make, dtype=torch.float64)
        shares = torch.empty(CLIENTS, dtype=torch.float64).exponential_(generator=make)
        wanted = (shares / shares.sum()).tolist()
        same = [1.0 / sum(scheme.rates(SECONDS))] * CLIENTS
        weights = rounds.weights(scheme, wanted, SECONDS) if undone else same
        optimum = mixture(wanted, centre)
        predicted = float((mixture(rounds.surrogate(scheme, weights, SECONDS), centre) - optimum).norm())
        biased = float((mixture(rounds.surrogate(scheme, same, SECONDS), centre) - optimum).norm())
        distance = float((trained(scheme, lr, weights, centre) - optimum).norm())
        # Relative to the bias that equal weights are predicted to have: 1 is that, 0 is none.
        return {"bias": distance / biased, "distance": distance, "predicted": predicted}

    return run


def claim() -> Claim:
    arms: dict[str, Arm] = {}
    for name in SCHEMES:
        arms |= {f"{name}, equal weights": arm(name, undone=False), f"{name}, p / rate": arm(name, undone=True)}
    return Claim(
        sentence=(
            "On eight quadratics whose clients differ in speed by a factor of five, weights of importance over rate of taking "
            "part remove more than 90% of the bias that equal weights have, under FedAvg, asynchronous FedAvg, FedFix and "
            "FedBuff."
        ),
        paper="A general theory of asynchronous federated optimisation (arXiv 2206.10189)",
        method=rounds,
        arms=arms,
        metric="bias",
        better="lower",
        expected=tuple(Expectation(better=f"{name}, p / rate", worse=f"{name}, equal weights", margin=0.9) for name in SCHEMES),
        seeds=5,
        quick=True,
        minutes=0.5,
    )
