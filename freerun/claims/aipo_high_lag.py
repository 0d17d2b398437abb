"""A bounded importance weight keeps a transformer learning at a lag at which REINFORCE loses what it had."""

from freerun.algorithms.language import aipo, reinforce
from freerun.claims import tiny
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence=(
            "When every token is 16 updates old, AIPO still learns, and REINFORCE, which does not correct for that, ends far "
            "below it."
        ),
        paper="LlamaRL (arXiv 2505.24034)",
        method=aipo,
        arms={
            "aipo": lambda seed: tiny.train(aipo.Config(), seed=seed, lag=16),
            "reinforce": lambda seed: tiny.train(reinforce.Config(), seed=seed, lag=16),
        },
        metric="accuracy",
        expected=(Expectation(better="aipo", worse="reinforce", margin=0.1),),
        minutes=2.0,
    )
