"""GSPO's ratio of a response spreads no more when the response is long, where the product of its tokens' ratios does."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import grpo, gspo, rloo
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation
from freerun.ops.ratios import effective_sample_size, sequence_log_ratio
from freerun.ops.reduce import Reduction

STALE = tabular.Setting(steps=100, refresh=20)
WIDE = 0.05
"""The clip of the reference simulation of the sequence task."""
DRIFT = 0.1
"""Standard deviation of a token's log-ratio: of the policy that moved against the one that sampled."""


def arm(config: AlgorithmConfig, ratio: str) -> Arm:
    """`config` learns from stale data; `ratio` weighs responses of 16 and 256 tokens."""

    def run(seed: int) -> Mapping[str, Any]:
        make = torch.Generator().manual_seed(seed)
        found = {f"ess_{length}": kept(ratio, length, make) for length in (16, 256)}
        return {**tabular.train(config, tabular.chain(), STALE, seed=seed).numbers(), **found}

    return run


def kept(ratio: str, length: int, make: torch.Generator) -> float:
    """The effective share of 4096 responses under their weights: of whole responses, or of their tokens."""
    u_BT = DRIFT * torch.randn(4096, length, generator=make, dtype=torch.float64) - DRIFT**2 / 2
    mask_BT = torch.ones_like(u_BT, dtype=torch.bool)
    if ratio == "token":
        return float(effective_sample_size(u_BT.exp(), mask_BT))
    return float(effective_sample_size(sequence_log_ratio(u_BT, mask_BT, mean=ratio == "root").exp(), mask_BT[:, :1]))


def claim() -> Claim:
    return Claim(
        sentence=(
            "With token log-ratios that spread by 0.1, responses of 256 tokens are worth nearly their number if their "
            "weights are GSPO's roots (effective share), and less than half of it if they are products; and on data up to "
            "20 updates old GSPO with a clip of 0.05 learns the sequence task faster than GRPO with one of 0.2."
        ),
        paper="GSPO (arXiv 2507.18071)",
        method=gspo,
        arms={
            "gspo": arm(gspo.Config(clip_low=WIDE, clip_high=WIDE), "root"),
            "grpo": arm(grpo.Config(), "token"),
            "product": arm(rloo.Config(clip="sequence", reduction=Reduction.TOKEN_MEAN), "product"),
            "gspo, clip of the paper": arm(gspo.Config(), "root"),
        },
        metric="value",
        expected=(
            Expectation(better="gspo", worse="product", margin=0.4, metric="ess_256"),
            Expectation(better="gspo", worse="grpo"),
        ),
        quick=True,
        minutes=0.2,
        tried=(
            "The paper's clip, 3e-4 and 4e-4, is for thousands of tokens and many small steps; it is run beside, and so "
            "is the product, as RLOO with a clip: responses of this task have eight tokens, in which a product does not "
            "spread much."
        ),
    )
