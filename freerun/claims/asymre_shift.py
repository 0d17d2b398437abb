"""On responses that were sampled once, a baseline below the mean keeps a transformer that one at or above the mean destroys."""

from freerun.algorithms.language import asymre
from freerun.claims.base import Claim, Expectation
from freerun.claims.offline import arm


def claim() -> Claim:
    return Claim(
        sentence=(
            "On a fixed data set a baseline of the mean minus 0.1 ends with at least 5 points more accuracy than one of the "
            "mean, and that above one of the mean plus 0.1."
        ),
        paper="AsymRE (arXiv 2506.20520)",
        method=asymre,
        arms={
            "-0.1": arm(asymre.Config(shift=-0.1)),
            "0": arm(asymre.Config(shift=0.0)),
            "+0.1": arm(asymre.Config(shift=0.1)),
        },
        metric="accuracy",
        expected=(
            Expectation(better="-0.1", worse="0", margin=0.05),
            Expectation(better="0", worse="+0.1"),
        ),
        minutes=3.0,
    )
