"""The gradient of every method and of every option that it names, on one small step, worked by hand from credit to reduction.

Two responses to one prompt: the first has tokens a, b and a reward of 1, the second c, d, e and -1. By token:

                                        a      b     c     d      e       first response   second
    current over proximal, V          1.1    1.5  0.96   0.5      3             1.65         1.44
    proximal over behaviour, W         12    0.5     1   6.3   0.25                6        1.575
    current over behaviour, U = V W  13.2   0.75  0.96  3.15   0.75              9.9        2.268
    current over reference, X           2    1/4     1     4    1/2              1/2            2

A row of numbers is the slope of the loss in the log-prob of each token, before the reduction; a positive one lowers the token.
Around the behaviour policy a clip of 0.2 stops a (above, and good) and e (below, and bad); around the proximal one it stops b
and d. Of the rewards, group means make 1 and -1, z-scores Z and -Z, the means of the others 2 and -2.

Shapes: B responses, T tokens.
"""

import dataclasses
import math
from statistics import fmean, stdev

import pytest
import torch

from freerun.algorithms.language import grpo, pear, remix
from freerun.ops.reduce import Reduction
from freerun.types import Batch

MASK = torch.tensor([[True, True, False], [True, True, True]])
PROBS = (0.5, 0.2, 0.5, 0.4, 0.25)
V = (1.1, 1.5, 0.96, 0.5, 3.0)
W = (12.0, 0.5, 1.0, 6.3, 0.25)
U = (13.2, 0.75, 0.96, 3.15, 0.75)
X = (2.0, 0.25, 1.0, 4.0, 0.5)
LAG = (0, 1, 1, 3, 1)
VALUES_BEFORE = (0.5, 0.25, 0.5, 0.0, -0.5)
VALUES = (0.5, 0.5, 0.5, 0.0, -0.25)

Z, L = 1 / math.sqrt(2), math.log(2)
FIRST, SECOND = 9.9, 2.268
ROOT = SECOND ** (1 / 3)
K2 = (L, -2 * L, 0.0, 2 * L, -L)
"""Slopes of a k2 to the reference: the log-ratio."""
K3 = (0.5, -3.0, 0.0, 0.75, -1.0)
"""Slopes of a k3 to the reference: 1 - 1 / X."""
WEIGHTS = {
    Reduction.TOKEN_MEAN: (1 / 5,) * 5,
    Reduction.PROMPT_MEAN: (1 / 5,) * 5,
    Reduction.SEQUENCE_MEAN_TOKEN_MEAN: (1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6),
    Reduction.SEQUENCE_MEAN_TOKEN_SUM: (1 / 2,) * 5,
}


def plus(row, other, factor=1.0):
    return tuple(a + factor * b for a, b in zip(row, other, strict=True))


def times(factor, row):
    return tuple(factor * a for a in row)


def white(credits):
    """Mean 0 and variance 1 over the five tokens."""
    return tuple((c - fmean(credits)) / stdev(credits) for c in credits)


def clipped(advantages, around="behaviour"):
    """Where the clip leaves a gradient, the ratio times the advantage: b, c, d, or a, c, e."""
    ratios, kept = ((U, (0, 1, 1, 1, 0)), (V, (1, 0, 1, 0, 1)))[around == "proximal"]
    return tuple(-k * r * a for k, r, a in zip(kept, ratios, advantages, strict=True))


# --- credit that is made of the whole step

# PPO: errors of the critic -0.25, 0.75 and -0.5, -0.5, -0.5, added up from the end with a decay of 0.95.
GAE = (-0.25 + 0.95 * 0.75, 0.75, -0.5 - 0.95 * 0.975, -0.5 - 0.95 * 0.5, -0.5)
RETURNS = (0.9625, 1.0, -0.92625, -0.975, -1.0)
# Behaviour over reference is X / U: what half of its logarithm costs each token, and that added to the errors.
COST = tuple(0.5 * math.log(x / u) for x, u in zip(X, U, strict=True))
PAID = (-0.25 - COST[0], 0.75 - COST[1], -0.5 - COST[2], -0.5 - COST[3], -0.5 - COST[4])
PENALISED = (
    PAID[0] + 0.95 * PAID[1],
    PAID[1],
    PAID[2] + 0.95 * (PAID[3] + 0.95 * PAID[4]),
    PAID[3] + 0.95 * PAID[4],
    PAID[4],
)
# REINFORCE++: 1, 1, -1, -1, -1 have the mean -0.2 and the variance (2 * 1.44 + 3 * 0.64) / 4 = 1.2.
STEP = (1.2 / math.sqrt(1.2), 1.2 / math.sqrt(1.2), -0.8 / math.sqrt(1.2), -0.8 / math.sqrt(1.2), -0.8 / math.sqrt(1.2))
TO_GO = (1 - COST[0] - COST[1], 1 - COST[1], -1 - COST[2] - COST[3] - COST[4], -1 - COST[3] - COST[4], -1 - COST[4])
# RLOO: the penalty of each response, less that of the other.
APART = -0.5 * (math.log(0.5 / FIRST) - math.log(2 / SECOND))
# OPMD: with tau = 0.1 the log-average-exp of 1 and -1 is this.
AVERAGE = 0.1 * math.log((math.exp(10) + math.exp(-10)) / 2)
# DPO: the margin is 0.1 (log 1/2 - log 2), and sigmoid(-margin) this.
DOUBT = 2**0.2 / (1 + 2**0.2)

UNITS = (1.0, 1.0, -1.0, -1.0, -1.0)
SCORES = times(Z, UNITS)
PLAIN = times(-1, UNITS)
CLIPPED, CLIPPED_Z, CLIPPED_V = clipped(UNITS), clipped(SCORES), clipped(SCORES, "proximal")
WINDOW = (0.0, 0.0, 0.96 * Z, 0.0, 0.75 * Z)
"""ReMix: the window around W is 0.2 wide either way; U has left it above at a, b and e, below at d."""


def opmd(first, second, one=1.0, other=-1.0):
    """Advantages less a tenth of the log-ratio of the response."""
    return (-(one - 0.1 * first),) * 2 + (-(other - 0.1 * second),) * 3


def weighed(row, *, first=1.0, second=1.0):
    return times(first, row[:2]) + times(second, row[2:])


NUMBERS = {
    "aipo-default": (-4.0, -0.75, 0.96, 3.15, 0.75),
    "aipo-gradient=through_min": (0.0, -0.75, 0.96, 3.15, 0.75),
    # The value of the prompt is 0.2, so the second response has no advantage; the ratio of the first is 1/2.
    "alol-default": (-0.4, -0.4, 0, 0, 0),
    "alol-ratio=token": (-0.8 * 1.9, -0.8 * 0.25, 0, 0, 0),
    "alol-ratio=none": (-0.8, -0.8, 0, 0, 0),
    "alol-signal=squared_advantage": (-0.32, -0.32, 0, 0, 0),
    "alol-signal=reward": (-0.5, -0.5, 1.9, 1.9, 1.9),
    "alol-kl_coefficient=0.5": (0.1, 0.1, 0.5, 0.5, 0.5),
    "asymre-default": (-1.1, -1.1, 0.9, 0.9, 0.9),
    # In the gradient b counts 0.75, against 4.86 with e or 4.11 without: no bounds help, and the last are 0.9 and 3.
    "bapo-default": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0),
    "bapo-balance=to_negative": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0),
    "bapo-search=code": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0),
    # In the loss a counts as much as the upper bound: 2.5 + 0.75 is 0.4 of it and 4.86, so the lower bound is still 0.6.
    "bapo-paper": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0.75 * Z),
    "bapo-accounting=surrogate": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0.75 * Z),
    # 0.8 and 2 at the end of the search; 0.95 and 1.8, where 1.8 + 0.75 is half of 5.06. Both stop ratios of failures at 3.
    "bapo-code, yaml": (0, -0.75 * Z, 0.96 * Z, 0, 0),
    "bapo-code, script": (0, -0.75 * Z, 0.96 * Z, 0, 0),
    "cispo-default": (-1.28 * Z, -0.75 * Z, 0.96 * Z, 1.28 * Z, 0.75 * Z),
    "cispo-normalise=population_std": (-1.28, -0.75, 0.96, 1.28, 0.75),
    "cispo-normalise=none": (-1.28, -0.75, 0.96, 1.28, 0.75),
    "dapo-default": CLIPPED_Z,
    "dapo-overlong=filter": CLIPPED_Z,
    "dapo-overlong=none": CLIPPED_Z,
    "dapo-proximal=recomputed": CLIPPED_V,
    # Weights 1, 0.5, 1, 1, 0.25; both responses are among the four fifths of highest entropy.
    "dart-default": plus((-1.1 * Z, 0, 0.96 * Z, 0, 0.75 * Z), K3, 0.1),
    # The root of the first response is 1.2845, just beyond the clip.
    "dart-ratio=geometric": plus((0, 0, *times(1.44 ** (1 / 3) * Z, (1, 1, 0.25))), K3, 0.1),
    "dart-code": plus((0, 0, *times(1.44 ** (1 / 3) * Z, (1, 1, 0.25))), K3, 0.1),
    "decoupled_ppo-default": (0, 0, 0.96 * Z, 0, 0.75 * Z),
    "decoupled_ppo-beyond_cap=clamp": (-5.5 * Z, 0, 0.96 * Z, 0, 0.75 * Z),
    "decoupled_ppo-normalise=none": (0, 0, 0.96, 0, 0.75),
    # The proximal policy is behaviour at a, half way at b, c and e, three quarters of the way at d: ratios 13.2, 0.87, 0.98,
    # 1.33 and 0.87 lie inside, but for the first, and times their weights they are U.
    "decoupled_ppo-proximal=interpolated": (0, -0.75 * Z, 0.96 * Z, 3.15 * Z, 0.75 * Z),
    "dpo-default": (-0.1 * DOUBT,) * 2 + (0.1 * DOUBT,) * 3,
    "dpo-label_smoothing=0.5": (-0.1 * (DOUBT - 0.5),) * 2 + (0.1 * (DOUBT - 0.5),) * 3,
    "drgrpo-default": CLIPPED,
    "drgrpo-proximal=recomputed": clipped(UNITS, "proximal"),
    "grpo-default": CLIPPED_Z,
    "grpo-normalise=population_std": CLIPPED,
    "grpo-normalise=none": CLIPPED,
    "grpo-proximal=recomputed": CLIPPED_V,
    "grpo-kl_coefficient=0.5": plus(CLIPPED_Z, K3, 0.5),
    # Without a coefficient there is no KL to estimate; with one, below.
    "grpo-kl_estimator=k2": CLIPPED_Z,
    "grpo-kl_estimator=weighted_k3": CLIPPED_Z,
    # The roots of the first response are beyond the clip, those of the second are above 1 and pushed down.
    "gspo-default": (0, 0) + (ROOT * Z,) * 3,
    "gspo-normalise=population_std": (0, 0) + (ROOT,) * 3,
    "gspo-normalise=none": (0, 0) + (ROOT,) * 3,
    "gspo-proximal=recomputed": (0, 0) + (1.44 ** (1 / 3) * Z,) * 3,
    "icepop-default": (0, 0, 0.96 * Z, 0, 0),
    "icepop-normalise=population_std": (0, 0, 0.96, 0, 0),
    "icepop-normalise=none": (0, 0, 0.96, 0, 0),
    "minirl-default": (-5.0, 0, 0.96, 0, 0.75),
    "minirl-routing=update": (-5.0, 0, 0.96, 0, 0.75),
    "minirl-routing=rollout": (-5.0, 0, 0.96, 0, 0.75),
    "opmd-default": opmd(math.log(FIRST), math.log(SECOND)),
    "opmd-forget_moments=True": opmd(math.log(FIRST), math.log(SECOND)),
    "opmd-form=pairwise": opmd(math.log(FIRST / SECOND) / 2, -math.log(FIRST / SECOND) / 2),
    "opmd-form=simple": times(1 / 1.1, PLAIN),
    "opmd-penalty=token": plus(PLAIN, [math.log(u) for u in U], 0.1),
    "opmd-baseline=log_average_exp": opmd(math.log(FIRST), math.log(SECOND), 1 - AVERAGE, -1 - AVERAGE),
    "opmd-old=recomputed": opmd(math.log(1.65), math.log(1.44)),
    # Log-ratios 0.3, -0.08 and -0.04, 0.3, -0.08 within their bounds. A block of four is the whole of either response.
    "pear-default": (-1.0,) * 5,
    "pear-form=token": (-0.999 * math.exp(-0.08), -1, -(0.999**2) * math.exp(0.22), -0.999 * math.exp(-0.08), -1),
    "pear-form=sequence": (-math.exp(0.22),) * 2 + (-math.exp(0.22 + math.log(0.96)),) * 3,
    "ppo-default": clipped(white(GAE)),
    "ppo-entropy_coefficient=0.5": clipped(white(GAE)),
    "ppo-whiten=False": clipped(GAE),
    "ppo-proximal=recomputed": clipped(white(GAE), "proximal"),
    "ppo-kl_coefficient=0.5": clipped(white(PENALISED)),
    "rec-default": (0, -1, 1, 1, 0),
    "rec-REC-OneSide-NoIS": (0, -1, 1, 1, 0),
    "rec-normalise=population_std": (0, -1, 1, 1, 0),
    "rec-old=recomputed": (-1, 0, 1, 0, 1),
    "rec-REINFORCE": PLAIN,
    "rec-clip=none": PLAIN,
    "rec-REC-OneSide-NoIS wide": (0, -1, 1, 1, 1),
    "rec-REC-OneSide-IS": CLIPPED,
    "rec-GRPO": CLIPPED,
    "rec-weight=importance": CLIPPED,
    "rec-weight=truncated": (0, -0.75, 0.96, 3.0, 0),
    "rec-clip=two_side": (0, 0, 1, 0, 0),
    "rec-REC-TwoSide-IS": (0, 0, 0.96, 0, 0),
    # d is bad and above 3, where the ring begins again.
    "rec-clip=ring": (0, 0, 1, 1, 0),
    "rec-REC-Ring-NoIS": (0, 0, 1, 1, 0),
    "rec-ratio=geometric": (0, 0, 1, 1, 1),
    "rec-REC-GSPO-NoIS": (0, 0, 1, 1, 1),
    "rec-REC-GSPO-IS": (0, 0) + (ROOT,) * 3,
    "rec-regulariser=k2": plus((0, -1, 1, 1, 0), [math.log(u) for u in U], 0.2),
    "rec-OPMD": plus(PLAIN, [math.log(u) for u in U], 0.2),
    "rec-regulariser=forward_kl": (-0.1, -1.1, 0.9, 0.9, -0.1),
    "rec-AsymRE": (-1.1, -1.1, 0.9, 0.9, 0.9),
    # One good, one bad: nothing is dropped.
    "red-default": PLAIN,
    "red-normalise=population_std": PLAIN,
    "red-mode=weight": (-math.e,) * 2 + (1 / math.e,) * 3,
    "reinforce-default": PLAIN,
    "reinforce-baseline=none": PLAIN,
    "reinforce-baseline=leave_one_out": times(2, PLAIN),
    "reinforce_pp-default": clipped(STEP),
    "reinforce_pp-baseline=group_mean": clipped(STEP),
    "reinforce_pp-kl=loss": clipped(STEP),
    "reinforce_pp-proximal=recomputed": clipped(STEP, "proximal"),
    "reinforce_pp-kl_coefficient=0.5": clipped(white(TO_GO)),
    # In the first step all of the pull is to the reference.
    "remix-default": plus(WINDOW, K3, 0.001),
    "remix-normalise=none": plus(times(1 / Z, WINDOW), K3, 0.001),
    "remix-kl_estimator=k2": plus(WINDOW, K2, 0.001),
    "remix-entropy_coefficient=0.5": plus(WINDOW, K3, 0.001),
    "rloo-default": times(2, PLAIN),
    "rloo-proximal=recomputed": times(2, PLAIN),
    "rloo-clip=sequence": (0, 0) + (2 * SECOND,) * 3,
    "rloo-kl_coefficient=0.5": times(2 + APART, PLAIN),
    "sft-default": (-1.0,) * 5,
    "sophia-default": PLAIN,
    "tis-default": (-2.2 * Z, 0, 0.96 * Z, 0, 0.75 * Z),
    "tis-normalise=population_std": (-2.2, 0, 0.96, 0, 0.75),
    "tis-normalise=none": (-2.2, 0, 0.96, 0, 0.75),
    "tis-level=sequence": weighed(CLIPPED_V, first=2.0, second=1.575),
    "topr-default": PLAIN,
    "topr-rewards=zero_one": PLAIN,
    "topr-rewards=group_mean": PLAIN,
    "topr-baseline=0.5": (-0.5, -0.5, 1.5, 1.5, 1.5),
    "topr-negative_low=0.5": PLAIN,
    "topr-ratio=token": (-1, -1, 0.96, 1, 0.75),
}
COMBINED = {
    "grpo, k2": (grpo.Config(kl_coefficient=0.5, kl_estimator="k2"), plus(CLIPPED_Z, K2, 0.5)),
    # The slope of u k3 is u (k3 + 1 - 1 / X), which is u log X.
    "grpo, weighted k3": (
        grpo.Config(kl_coefficient=0.5, kl_estimator="weighted_k3"),
        plus(CLIPPED_Z, [u * k for u, k in zip(U, K2, strict=True)], 0.5),
    ),
    "pear, blocks of two": (
        pear.Config(block=2),
        (-1, -1, -0.999 * math.exp(-0.08), -0.999 * math.exp(-0.08), -1),
    ),
    "remix, no pull": (remix.Config(kl_coefficient=0.0), WINDOW),
}
# For CHORD the first response is a rollout and the second a demonstration: nine tenths of the clipped loss, which has b left,
# and a tenth of phi, which is p (1 - p), p or 1.
IMITATED = {"default": (0.25, 0.24, 0.1875), "weight=likelihood": (0.5, 0.4, 0.25), "weight=none": (1.0, 1.0, 1.0)}


def laid_out(values):
    """The five tokens as [B, T], the last place of the first response is padding."""
    row_BT = torch.zeros(MASK.shape, dtype=torch.float64)
    row_BT[MASK] = torch.tensor([float(v) for v in values], dtype=torch.float64)
    return row_BT


def step_gradient(config, tools, rewards=(1.0, -1.0), *, demonstrated=False):
    """Gradients of a whole step: of log-probs, values and entropies, each by token. The second response may be a demonstration,
    which is a group of its own."""
    algorithm = config.build()
    group = tools.group_of([0.0, *rewards])
    group = dataclasses.replace(group, trajectories=group.trajectories[1:], rewards=group.rewards[1:])
    advantage_G, _ = algorithm.credit(group, algorithm.init())
    logp_BT = laid_out([math.log(p) for p in PROBS])
    batch = Batch(
        {
            "mask": MASK,
            "mask_rollout": MASK & torch.tensor([[True], [not demonstrated]]),
            "mask_expert": MASK & torch.tensor([[False], [demonstrated]]),
            "advantage": advantage_G.double()[:, None].expand(MASK.shape).clone(),
            "reward": torch.tensor(rewards, dtype=torch.float64),
            "group": torch.tensor([0, int(demonstrated)]),
            "group_tokens": torch.tensor([2, 3] if demonstrated else [5, 5]),
            "lag": laid_out(LAG).long(),
            "logp_behaviour": logp_BT - laid_out([math.log(u) for u in U]),
            "logp_proximal": logp_BT - laid_out([math.log(v) for v in V]),
            "logp_reference": logp_BT - laid_out([math.log(x) for x in X]),
            "logp_previous": logp_BT,
            "entropy_proximal": MASK.double(),
            "values": laid_out(VALUES_BEFORE),
            "value_reference": torch.full((2,), 0.2, dtype=torch.float64),
        }
    )
    batch = tools.prepared(algorithm, batch)
    outputs = {"logp": logp_BT, "values": laid_out(VALUES), "entropy": MASK.double()}
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    tools.step_loss(algorithm, [(outputs, batch)])[0].backward()
    return {name: value.grad[MASK].tolist() for name, value in outputs.items() if value.grad is not None}


def reduced(row, config):
    """Slopes by token times what the reduction makes of them."""
    name = type(config).__module__.rpartition(".")[2]
    weights = {
        "gspo": WEIGHTS[Reduction.SEQUENCE_MEAN_TOKEN_MEAN],
        "drgrpo": times(1 / 1024, WEIGHTS[Reduction.SEQUENCE_MEAN_TOKEN_SUM]),
        # The mean over the one pair.
        "dpo": (1.0,) * 5,
    }.get(name) or WEIGHTS[Reduction(config.reduction)]
    return [slope * weight for slope, weight in zip(row, weights, strict=True)]


def numbers_of(name):
    """Where the numbers of a variant are: a reduction has those of the default."""
    method, _, option = name.partition("-")
    return f"{method}-default" if "reduction=" in option else name


def test_the_table_is_the_one_above():
    assert [v * w for v, w in zip(V, W, strict=True)] == pytest.approx(U)
    assert (math.prod(U[:2]), math.prod(U[2:])) == pytest.approx((FIRST, SECOND))


def test_every_method_and_every_option_that_it_names_has_numbers_worked_by_hand(tools):
    named = {numbers_of(name) for name in tools.variants if not name.startswith("chord-")}
    assert set(NUMBERS) == named, "work out what a new option makes of the five tokens, and enter it in NUMBERS"
    assert {numbers_of(name) for name in tools.variants if name.startswith("chord-")} == {f"chord-{name}" for name in IMITATED}


def test_the_gradient_of_a_step_is_the_one_worked_by_hand(tools):
    for name, config in tools.variants.items():
        if name.startswith("chord-"):
            continue
        rewards = (1.0, 0.0) if name == "topr-rewards=zero_one" else (1.0, -1.0)
        found = step_gradient(config, tools, rewards)["logp"]
        assert found == pytest.approx(reduced(NUMBERS[numbers_of(name)], config), rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("name", COMBINED)
def test_options_that_go_together_have_the_gradient_worked_by_hand(name, tools):
    config, row = COMBINED[name]
    assert step_gradient(config, tools)["logp"] == pytest.approx(reduced(row, config), rel=1e-5, abs=1e-9)


def test_each_branch_of_chord_has_its_own_share_and_its_own_denominator(tools):
    sums = Reduction.SEQUENCE_MEAN_TOKEN_SUM
    for name, config in tools.variants.items():
        if name.startswith("chord-"):
            policy = 0.9 * -0.75 * Z / (1 if config.reduction == sums else 2)
            expert = 0.1 / (1 if config.expert_reduction == sums else 3)
            row = [0.0, policy, *(-expert * phi for phi in IMITATED[numbers_of(name).partition("-")[2]])]
            found = step_gradient(config, tools, demonstrated=True)["logp"]
            assert found == pytest.approx(row, rel=1e-5, abs=1e-9), name


def test_the_critic_of_ppo_moves_to_its_returns_but_not_where_it_moved_too_far_already(tools):
    """b has moved by 0.25, more than 0.2, and towards its return: it waits. e has moved as far, away from it."""
    config = tools.variants["ppo-default"]
    errors = [now - then for now, then in zip(VALUES, RETURNS, strict=True)]
    errors[1] = 0.0
    assert step_gradient(config, tools)["values"] == pytest.approx([error / 5 for error in errors], rel=1e-5)


@pytest.mark.parametrize("name", ["ppo-entropy_coefficient=0.5", "remix-entropy_coefficient=0.5"])
def test_an_entropy_bonus_raises_the_entropy_of_each_token_alike(name, tools):
    assert step_gradient(tools.variants[name], tools)["entropy"] == pytest.approx([-0.1] * 5)
