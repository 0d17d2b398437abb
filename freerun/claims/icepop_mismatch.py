"""IcePop leaves out the tokens on which a noisy sampler disagrees most, and keeps the rest of the gradient."""

from freerun.algorithms.language import grpo, icepop, tis
from freerun.claims import mismatch
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence=(
            "With noise of half a nat on the sampler's logits, the update of one step is closer to the gradient with "
            "IcePop's window of 0.5 to 5 than without any correction, over 200 six-armed bandits, in direction and in "
            "length; and the sequence task is learnt no worse: expected reward of the trainer's policy after 100 updates."
        ),
        paper="Ring-1T (arXiv 2510.18855)",
        method=icepop,
        arms={
            "0.5 to 5": mismatch.arm(icepop.Config()),
            "0.5 to 2": mismatch.arm(icepop.Config(high=2.0)),
            "truncated at 2": mismatch.arm(tis.Config()),
            "no correction": mismatch.arm(grpo.Config(proximal="recomputed")),
        },
        metric="closeness",
        expected=(
            Expectation(better="0.5 to 5", worse="no correction", margin=0.1),
            Expectation(better="0.5 to 5", worse="no correction", margin=0.01, metric="cosine"),
            Expectation(better="0.5 to 5", worse="no correction", margin=-0.02, metric="value"),
        ),
        seeds=10,
        quick=True,
        minutes=1.0,
        tried="The narrower window of slime and SkyRL, and TIS in its place, are run beside.",
    )
