"""On responses that were sampled once, failures that keep being unlearnt destroy a transformer, and tapered ones teach it."""

from freerun.algorithms.language import topr
from freerun.claims.base import Claim, Expectation
from freerun.claims.offline import arm


def claim() -> Claim:
    return Claim(
        sentence=(
            "On a fixed data set of answers worth +1 and -1, tapering failures to 0 ends with at least 5 points more accuracy "
            "than not tapering them, above tapering them to 0.2, and above leaving them out."
        ),
        paper="TOPR (arXiv 2503.14286)",
        method=topr,
        arms={
            "taper to 0": arm(topr.Config(rewards="zero_one")),
            "taper to 0.2": arm(topr.Config(rewards="zero_one", negative_low=0.2)),
            "no taper": arm(topr.Config(rewards="zero_one", negative_low=1.0)),
            # A baseline of -1 gives failures a reward of 0.
            "no failures": arm(topr.Config(rewards="zero_one", baseline=-1.0)),
        },
        metric="accuracy",
        expected=(
            Expectation(better="taper to 0", worse="no taper", margin=0.05),
            Expectation(better="taper to 0", worse="taper to 0.2"),
            Expectation(better="taper to 0", worse="no failures"),
        ),
        seeds=8,
        minutes=7.0,
        tried="With three seeds both tapers were unclear, because starts and data differ by more than they do: so eight.",
    )
