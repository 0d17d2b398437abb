"""DART's aligned objective on a noisy sampler: what its cap and its filter of high entropy do."""

from freerun.algorithms.language import dart, grpo, tis
from freerun.claims import mismatch
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence=(
            "With noise of half a nat on the sampler's logits, the update of one step is closer to the gradient with "
            "DART's capped weights than without any, over 200 six-armed bandits; and leaving out the fifth of each "
            "group's responses of lowest entropy does not slow the sequence task down: expected reward after 100 updates, "
            "within 0.02."
        ),
        paper="DART (arXiv 2509.23866)",
        method=dart,
        arms={
            # Without its KL, which would hold these arms, and no other, at the first policy.
            "dart": mismatch.arm(dart.Config(kl_coefficient=0.0)),
            "dart, no filter": mismatch.arm(dart.Config(kl_coefficient=0.0, keep=1.0)),
            "cap 2": mismatch.arm(tis.Config()),
            "no correction": mismatch.arm(grpo.Config(proximal="recomputed")),
        },
        metric="closeness",
        expected=(
            Expectation(better="dart", worse="no correction", margin=0.05),
            Expectation(better="dart", worse="dart, no filter", margin=-0.02, metric="value"),
        ),
        seeds=10,
        quick=True,
        minutes=1.0,
        tried="A cap of 2 without a filter, which is TIS, is run beside. Entropy here is that of whole responses.",
    )
