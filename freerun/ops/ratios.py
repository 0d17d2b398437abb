"""Policy ratios: how far one policy is from another on the tokens that were sampled, and weights made from that.

Shapes: B trajectories, T action tokens. Ratios are formed in log space and float32, and clamped (`ops.losses.log_ratio`), so
that no product of probabilities overflows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.ops.losses import log_ratio
from freerun.types import Max, Mean, Metric


def truncated(log_ratio_BT: Tensor, cap: float) -> Tensor:
    """`min(ratio, cap)`, truncated before `exp`. TIS; V-trace (arXiv 1802.01561)."""
    return log_ratio_BT.clamp(max=math.log(cap)).exp()


def within(log_ratio_BT: Tensor, low: float, high: float) -> Tensor:
    """True where `low <= ratio <= high`; `low` may be 0. IcePop keeps these tokens with their ratio and drops the others."""
    return (log_ratio_BT >= (math.log(low) if low > 0 else -math.inf)) & (log_ratio_BT <= math.log(high))


def sequence_log_ratio(log_ratio_BT: Tensor, mask_BT: Tensor, *, mean: bool) -> Tensor:
    """Log-ratio of whole trajectories [B, 1]: the sum over their tokens, or the `mean` (the geometric mean of the ratios);
    0 for a trajectory without tokens."""
    total_B1 = torch.where(mask_BT, log_ratio_BT, 0.0).sum(-1, keepdim=True)
    return total_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1) if mean else total_B1


def effective_sample_size(weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`(sum w)^2 / (n sum w^2)`, a scalar between 1/n and 1; 1 if there are no tokens."""
    weight_BT = torch.where(mask_BT, weight_BT.float(), 0.0)
    num = mask_BT.sum()
    return torch.where(num > 0, weight_BT.sum().square() / (num * weight_BT.square().sum()).clamp(min=1e-30), 1.0)


@dataclass(frozen=True, slots=True)
class RatioSums:
    """What ratios to the behaviour policy add up to over tokens; `+` merges micro-batches."""

    count: float = 0.0
    ratio: float = 0.0
    ratio_squared: float = 0.0
    ratio_max: float = 0.0

    def __add__(self, other: "RatioSums") -> "RatioSums":
        return RatioSums(
            self.count + other.count,
            self.ratio + other.ratio,
            self.ratio_squared + other.ratio_squared,
            max(self.ratio_max, other.ratio_max),
        )

    def metrics(self) -> dict[str, Metric]:
        """`ess` as well: it follows from the sums, not from the means of micro-batches."""
        effective = self.ratio**2 / max(self.ratio_squared, 1e-30)
        ess = Mean(effective, self.count) if self.count else Mean(1.0, 1.0)
        return {"ratio/mean": Mean(self.ratio, self.count), "ratio/max": Max(self.ratio_max), "ess": ess}


def ratio_sums(logp_BT: Tensor, logp_behaviour_BT: Tensor, mask_BT: Tensor) -> RatioSums:
    """Sums of the ratios current / behaviour over the tokens of `mask_BT`; one transfer from the device."""
    ratio_BT = torch.where(mask_BT, log_ratio(logp_BT.detach().float(), logp_behaviour_BT).exp(), 0.0)
    largest = ratio_BT.amax() if ratio_BT.numel() else ratio_BT.new_zeros(())
    return RatioSums(*torch.stack([mask_BT.sum().float(), ratio_BT.sum(), ratio_BT.square().sum(), largest]).tolist())


def mismatch(logp_BT: Tensor, logp_behaviour_BT: Tensor, lag_BT: Tensor, mask_BT: Tensor) -> dict[str, Metric]:
    """Disagreement of the trainer, before its update, with the policy that sampled.

    k3 is `r - 1 - log r`, `r` = trainer / generator (an unbiased estimate of KL(generator || trainer) on the generator's own
    samples). At lag 0 both have the same weights, so what is left there is numerics.
    """
    difference_BT = torch.where(mask_BT, logp_BT.detach().float() - logp_behaviour_BT, 0.0)
    size_BT, fresh_BT = difference_BT.abs(), mask_BT & (lag_BT == 0)
    limited_BT = difference_BT.clamp(-20.0, 20.0)
    k3_BT = torch.expm1(limited_BT) - limited_BT
    largest = size_BT.amax() if size_BT.numel() else size_BT.new_zeros(())
    sums = [mask_BT.sum(), size_BT.sum(), largest, k3_BT.sum(), fresh_BT.sum(), torch.where(fresh_BT, size_BT, 0.0).sum()]
    num, total, largest_size, k3, num_fresh, total_fresh = torch.stack([s.float() for s in sums]).tolist()
    found: dict[str, Metric] = {
        "mismatch/abs_mean": Mean(total, num),
        "mismatch/abs_max": Max(largest_size),
        "mismatch/k3": Mean(k3, num),
    }
    # A step without a token of lag 0 has nothing to say about numerics; a mean of 0 would look like perfect agreement.
    return {**found, "mismatch/lag0_abs_mean": Mean(total_fresh, num_fresh)} if num_fresh else found


def lag_counts(lag_N: Tensor) -> dict[int, float]:
    """Tokens per lag."""
    lags, counts = torch.unique(lag_N, return_counts=True)
    return dict(zip(lags.tolist(), map(float, counts.tolist()), strict=True))
