"""RL strengthens what a policy sometimes does; it does not find what the policy never does."""

from dataclasses import replace

from freerun.algorithms.language import reinforce, sft
from freerun.claims import tiny
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence=(
            "With an exact reward, RL from random weights learns nothing, and the same RL after a short imitation of "
            "demonstrations learns more than the imitation taught."
        ),
        paper="InstructGPT (arXiv 2203.02155), whose first step is the supervised one",
        method=sft,
        arms={
            "imitation, then rl": lambda seed: tiny.train(reinforce.Config(), seed=seed),
            "rl alone": lambda seed: tiny.train(reinforce.Config(), seed=seed, job=replace(tiny.Job(), warm_accuracy=0.0)),
            "imitation alone": lambda seed: {
                "accuracy": tiny.train(reinforce.Config(), seed=seed, control={"steps": 1})["start"]
            },
        },
        metric="accuracy",
        expected=(
            Expectation(better="imitation, then rl", worse="rl alone", margin=0.2),
            Expectation(better="imitation, then rl", worse="imitation alone", margin=0.2),
        ),
        minutes=2.0,
    )
