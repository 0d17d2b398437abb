"""One step of lag costs nothing."""

from freerun.algorithms.language import aipo
from freerun.claims import tiny
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence="After the same number of steps, AIPO on data one update old is not worse than on fresh data by 0.05.",
        paper="LlamaRL (arXiv 2505.24034)",
        method=aipo,
        arms={
            "lag 1": lambda seed: tiny.train(aipo.Config(), seed=seed, lag=1),
            "lag 0": lambda seed: tiny.train(aipo.Config(), seed=seed, lag=0),
        },
        metric="accuracy",
        expected=(Expectation(better="lag 1", worse="lag 0", margin=-0.05),),
        seeds=5,
        minutes=2.5,
    )
