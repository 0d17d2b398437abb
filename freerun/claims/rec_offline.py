"""On responses that were sampled once, REINFORCE destroys a transformer, and a clip, with or without a weight, keeps it."""

from freerun.algorithms.language import rec
from freerun.claims.base import Claim, Expectation
from freerun.claims.offline import arm


def claim() -> Claim:
    return Claim(
        sentence=(
            "On a fixed data set a one-sided clip of 0.2 ends with at least 5 points more accuracy than REINFORCE; an "
            "importance weight changes the clipped result by less than 5 points either way."
        ),
        paper="REC (arXiv 2509.24203), fully offline",
        method=rec,
        arms={
            "no clip": arm(rec.NAMED["REINFORCE"]),
            "0.2": arm(rec.NAMED["REC-OneSide-NoIS"]),
            "0.2, weight": arm(rec.NAMED["REC-OneSide-IS"]),
            "wide": arm(rec.NAMED["REC-OneSide-NoIS wide"]),
        },
        metric="accuracy",
        expected=(
            Expectation(better="0.2", worse="no clip", margin=0.05),
            Expectation(better="0.2, weight", worse="0.2", margin=-0.05),
            Expectation(better="0.2", worse="0.2, weight", margin=-0.05),
        ),
        seeds=8,
        minutes=6.0,
        tried="With three seeds the weight's effect was -4.4 points, from -19 to 10: too few to tell, so there are eight.",
    )
