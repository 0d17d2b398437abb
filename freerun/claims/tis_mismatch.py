"""TIS takes most of the error away that a noisy sampler puts into a gradient."""

from freerun.algorithms.language import grpo, tis
from freerun.claims import mismatch
from freerun.claims.base import Claim, Expectation


def claim() -> Claim:
    return Claim(
        sentence=(
            "With noise of half a nat on the sampler's logits, the update of one step is closer to the gradient with "
            "TIS's weights than without any, over 200 six-armed bandits, in direction and in length; and the sequence "
            "task is learnt no worse: expected reward of the trainer's policy after 100 updates."
        ),
        paper="Yao et al. 2025, truncated importance sampling for two engines of one policy",
        method=tis,
        arms={
            "token, cap 2": mismatch.arm(tis.Config()),
            "sequence, cap 5": mismatch.arm(tis.Config(level="sequence", cap=5.0)),
            "no correction": mismatch.arm(grpo.Config(proximal="recomputed")),
            "no noise": mismatch.arm(grpo.Config(proximal="recomputed"), noise=0.0),
        },
        metric="closeness",
        expected=(
            Expectation(better="token, cap 2", worse="no correction", margin=0.1),
            Expectation(better="token, cap 2", worse="no correction", margin=0.01, metric="cosine"),
            Expectation(better="token, cap 2", worse="no correction", margin=-0.02, metric="value"),
        ),
        seeds=10,
        quick=True,
        minutes=1.0,
        tried="Weights of whole responses, with SkyRL's cap of 5, are the same in one step of one token; they are run beside.",
    )
