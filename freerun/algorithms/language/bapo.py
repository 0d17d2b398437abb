"""BAPO: PPO's clip with bounds that move, before every update, until good tokens contribute enough.

Paper       "BAPO" (arXiv 2510.18927, eq. 8 and algorithm 1): balanced policy optimisation with adaptive clipping.
Estimator   the clipped importance-weighted policy gradient, in which positive advantages hold a given share.
Equation    loss_t = -min(u A, clip(u, low, high) A),   u = pi / mu,   A = (r - mean) / std
            (low, high) is the first of a list of pairs, from (low_start, high_start) to (low_end, high_end), at which
            positive >= target (positive + negative)  |  positive >= target negative;  the last one if none is
            gradient:   positive = sum of u A over A > 0, u <= high;   negative = sum of u |A| over A < 0, u >= low
            surrogate:  positive = sum of min(u, high) A over A > 0;   negative = sum of max(u, low) |A| over A < 0
Assumption  as for grpo; wider bounds let older tokens count.
Degenerate  a group of one, or of equal rewards, has gradient 0. Without negatives the bounds stay where they start. Equal
            starts and ends are PPO's clip.
Named       `NAMED` holds the paper's configuration and the two of the released code. `accounting`: "surrogate" is the paper's
            eq. 8, with sums of absolute values, and the code. There raising `low` makes negatives count more (a clipped token
            counts low |A| in place of the smaller u |A|), so it moves away from the target, which is not what it is for.
            "gradient" counts what reaches the gradient, where it moves towards it: hence the default. `search`: "paper" widens
            `high` first, "code" raises `low` first. `balance`: the paper's share is of the total, the code's is to the
            negatives. The code adds a dual clip of 3 and finds bounds for each micro-batch; here they hold for the minibatch.
State       low and high: made anew, by a look at the whole minibatch, before each optimiser step.

Shapes: B trajectories, T action tokens, N tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from freerun.algorithms.base import Algorithm, LossOut, Outputs, State, Term, check
from freerun.ops import advantages, losses
from freerun.ops.reduce import Reduction, means
from freerun.types import Batch, Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    target: float = 0.4
    """What the contribution of positive advantages has to reach."""
    balance: Literal["of_total", "to_negative"] = "of_total"
    """What it is measured against."""
    accounting: Literal["gradient", "surrogate"] = "gradient"
    """Whether a token contributes its part of the gradient or of the loss."""
    search: Literal["paper", "code"] = "paper"
    """Which bound moves first: `paper` the upper one, `code` the lower one."""
    low_start: float = 0.6
    """Smallest lower bound of the ratio."""
    low_end: float = 0.9
    """Largest lower bound."""
    low_step: float = 0.02
    """Step of the lower bound."""
    high_start: float = 1.2
    """Smallest upper bound of the ratio."""
    high_end: float = 3.0
    """Largest upper bound."""
    high_step: float = 0.05
    """Step of the upper bound."""
    dual_clip: float | None = None
    """Largest ratio of a negative advantage that still has a gradient; none: no bound (code: 3)."""
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How token losses become one number."""

    def __post_init__(self) -> None:
        rules = {
            "target >= 0": self.target >= 0,
            "0 <= low_start <= low_end <= 1": 0 <= self.low_start <= self.low_end <= 1,
            "1 <= high_start <= high_end": 1 <= self.high_start <= self.high_end,
            "low_step > 0 and high_step > 0": min(self.low_step, self.high_step) > 0,
            "dual_clip > 1": self.dual_clip is None or self.dual_clip > 1,
        }
        check(self, rules)

    def build(self) -> Algorithm:
        return Algorithm(
            name="bapo",
            credit=advantages.credit(advantages.z_score),
            terms=(Term(name="policy", loss=partial(policy_loss, config=self), reduction=Reduction(self.reduction)),),
            needs=frozenset({"mask", "advantage", "logp_behaviour"}),
            group_baseline=True,
            advantage_gates=True,
            init=partial(widest, config=self),
            probe=partial(balanced, config=self),
        )


CODE = partial(Config, accounting="surrogate", search="code", balance="to_negative", dual_clip=3.0, low_step=0.05, high_end=2.0)
NAMED = {
    "paper": Config(accounting="surrogate"),
    "code, yaml": CODE(target=1.0, low_end=0.8),
    "code, script": CODE(target=0.5, low_start=0.8, low_end=0.95, high_step=0.1),
}
"""The paper's configuration, and those of the released code."""


def widest(config: Config) -> State:
    return {"low": config.low_start, "high": config.high_start}


def bounds(config: Config) -> Iterator[tuple[float, float]]:
    """Every pair that the search may try, in its order."""
    lows = _grid(config.low_start, config.low_end, config.low_step)
    highs = _grid(config.high_start, config.high_end, config.high_step)
    if config.search == "paper":
        yield from ((lows[0], high) for high in highs)
        yield from ((low, highs[-1]) for low in lows[1:])
    else:
        yield from ((low, highs[0]) for low in lows)
        yield from ((lows[-1], high) for high in highs[1:])


def contributions(ratio_N: Tensor, advantage_N: Tensor, low: float, high: float, config: Config) -> tuple[float, float]:
    """What positive and what negative advantages contribute under these bounds."""
    size_N = ratio_N * advantage_N.abs()
    up_N, down_N = advantage_N > 0, advantage_N < 0
    if config.accounting == "surrogate":
        positive_N, negative_N = ratio_N.clamp(max=high) * advantage_N * up_N, -ratio_N.clamp(min=low) * advantage_N * down_N
    else:
        counts_N = down_N & (ratio_N >= low) & (ratio_N <= (config.dual_clip or float("inf")))
        positive_N, negative_N = size_N * (up_N & (ratio_N <= high)), size_N * counts_N
    return float(positive_N.sum()), float(negative_N.sum())


def balanced(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> State:
    """The bounds for the next optimiser step."""
    mask_BT = batch["mask"]
    ratio_N = losses.log_ratio(outputs["logp"], batch["logp_behaviour"]).exp()[mask_BT].detach()
    advantage_N = batch["advantage"][mask_BT].detach()
    low, high = config.low_start, config.high_start
    for low, high in bounds(config):
        positive, negative = contributions(ratio_N, advantage_N, low, high, config)
        if positive >= config.target * (negative + (positive if config.balance == "of_total" else 0.0)):
            break
    return {"low": low, "high": high}


def policy_loss(outputs: Outputs, batch: Batch, state: State, *, config: Config) -> LossOut:
    u_BT = losses.log_ratio(outputs["logp"], batch["logp_behaviour"])
    low, high = 1.0 - state["low"], state["high"] - 1.0
    loss_BT, clipped_BT = losses.clipped_surrogate(u_BT, batch["advantage"], low=low, high=high, dual=config.dual_clip)
    chosen = {"low": Mean(state["low"], 1), "high": Mean(state["high"], 1)}
    return LossOut(loss_BT, {**means(batch["mask"], **{"ratio/clipped": clipped_BT}), **chosen})


def _grid(start: float, end: float, step: float) -> list[float]:
    # A step that would end within rounding of the end has reached it.
    return [start + i * step for i in range(int((end - start) / step + 1e-9) + 1)]
