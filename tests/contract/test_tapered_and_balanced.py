"""TOPR and BAPO: how much of what went badly is unlearnt, by a taper on each response or by bounds for the whole update.

Shapes: B trajectories, T action tokens, N tokens.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from freerun.algorithms.language import bapo, grpo, reinforce, sft, topr
from freerun.errors import ConfigError, DataError
from tests.contract.worked import batch_of, log, same_gradient, slopes

LENGTHWISE = "sequence_mean_token_mean"

# TOPR


def test_topr_weighs_failures_by_the_ratio_of_their_response_and_at_most_by_one():
    """Token ratios (1/2, 1/2) and (2, 2): their responses have 1/4 and 4. Successes have 1 whatever their ratio."""
    behaviour = log(0.4, 0.2)
    for current, ratio in ((log(0.2, 0.1), 0.25), (log(0.8, 0.4), 4.0)):
        for reward in (1.0, -1.0):
            batch = batch_of([reward, reward], logp_behaviour=behaviour)
            gradient, metrics = slopes(topr.Config(), current, batch)
            alpha = 1.0 if reward > 0 else min(1.0, ratio)
            assert gradient == pytest.approx([-alpha * reward] * 2)
            assert metrics["weight"] == pytest.approx(alpha)
            assert metrics["ratio/clipped"] == (reward < 0 and ratio > 1)


def test_the_token_taper_is_weaker_than_that_of_the_response():
    batch = batch_of([-1.0, -1.0], logp_behaviour=log(0.4, 0.2))
    assert slopes(topr.Config(ratio="token"), log(0.2, 0.1), batch)[0] == pytest.approx([0.5, 0.5])
    assert slopes(topr.Config(ratio="sequence"), log(0.2, 0.1), batch)[0] == pytest.approx([0.25, 0.25])


def test_the_limits_of_both_signs_may_be_moved():
    wide = topr.Config(positive_low=0.5, positive_high=3.0, negative_low=0.2, negative_high=2.0)
    behaviour = log(0.4)
    for reward, low, high in ((1.0, 0.5, 3.0), (-1.0, 0.2, 2.0)):
        for ratio in (0.05, 0.4, 1.0, 2.4):
            batch = batch_of([reward], logp_behaviour=behaviour)
            gradient, _ = slopes(wide, log(0.4 * ratio), batch)
            assert gradient == pytest.approx([-reward * min(max(ratio, low), high)])


def test_no_weight_exceeds_one_by_default(toy, tools):
    far = toy.batch.with_columns(logp_behaviour=toy.batch["logp_behaviour"] - 3.0)
    assert same_gradient(tools, toy, topr.Config(), reinforce.Config(reduction=LENGTHWISE), **far)


def test_topr_with_all_limits_at_one_is_reinforce_without_a_baseline(toy, tools):
    assert same_gradient(tools, toy, topr.Config(negative_low=1.0), reinforce.Config(baseline="none", reduction=LENGTHWISE))


def test_sequence_and_token_ratios_agree_on_responses_of_one_token(toy, tools):
    one = {"mask": toy.batch["mask"] & (torch.arange(7) == 0)}
    assert same_gradient(tools, toy, topr.Config(ratio="sequence"), topr.Config(ratio="token"), **one)
    assert not same_gradient(tools, toy, topr.Config(ratio="sequence"), topr.Config(ratio="token"))


def test_a_batch_of_successes_is_supervised_learning_weighted_by_the_reward(toy, tools):
    reward_BT = toy.batch["advantage"].abs()
    found = tools.step_gradient(topr.Config().build(), toy, toy.batch.with_columns(advantage=reward_BT))
    parameters = toy.parameters.clone().requires_grad_()
    mask_BT = toy.batch["mask"]
    weight_BT = mask_BT * reward_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1) / 7
    (-weight_BT * toy.outputs(parameters)["logp"]).sum().backward()
    assert torch.allclose(found, parameters.grad, rtol=1e-6)
    ones = toy.batch.with_columns(advantage=torch.ones_like(reward_BT))
    plain = tools.step_gradient(sft.Config(reduction=LENGTHWISE).build(), toy, toy.batch)
    assert torch.allclose(tools.step_gradient(topr.Config().build(), toy, ones), plain, rtol=1e-6)


def test_a_verifier_that_scores_failures_zero_is_refused_and_told_what_to_do(tools):
    algorithm = topr.Config().build()
    assert algorithm.credit(tools.group_of([1.0, -1.0]), {})[0].tolist() == [1.0, -1.0]
    with pytest.raises(DataError) as caught:
        algorithm.credit(tools.group_of([1.0, 0.0]), {})
    assert "[1.0, 0.0]" in caught.value.given
    assert "left out" in caught.value.expected
    assert "rewards='zero_one'" in caught.value.todo


def test_rewards_of_zero_and_one_become_signs_on_demand(tools):
    algorithm = topr.Config(rewards="zero_one").build()
    assert algorithm.credit(tools.group_of([1.0, 0.0, 0.25]), {})[0].tolist() == [1.0, -1.0, -0.5]
    for outside in (-1.0, 1.5):
        with pytest.raises(DataError, match="TOPR cannot tell good from bad"):
            algorithm.credit(tools.group_of([0.0, outside]), {})


def test_group_means_and_constants_make_signs_too(tools):
    group = tools.group_of([1.0, 0.0, 0.0, 0.0])
    assert topr.Config(rewards="group_mean").build().credit(group, {})[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert topr.Config(rewards="zero_one", baseline=0.5).build().credit(group, {})[0].tolist() == [0.5, -1.5, -1.5, -1.5]
    assert topr.Config(baseline=0.5).build().credit(group, {})[0].tolist() == [0.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_constant_baseline_sets_the_effective_share_of_positives(tools, share):
    """`p (1 - c) / (1 + c (1 - 2 p))`, of the credit in a group of ten."""
    table = {0.1: (1.0, 0.25, 0.1, 0.036), 0.3: (1.0, 0.562, 0.3, 0.125), 0.5: (1.0, 0.75, 0.5, 0.25)}
    good = round(10 * share)
    group = tools.group_of([1.0] * good + [-1.0] * (10 - good))
    for c, expected in zip((-1.0, -0.5, 0.0, 0.5), table[share], strict=True):
        # At c = -1 every failure has a credit of 0, which `signed` refuses: that is positives alone.
        if c == -1.0:
            with pytest.raises(DataError, match="TOPR"):
                topr.Config(baseline=c).build().credit(group, {})
            continue
        advantage_G, _ = topr.Config(baseline=c).build().credit(group, {})
        found = float(advantage_G.clamp(min=0).sum() / advantage_G.abs().sum())
        assert found == pytest.approx(share * (1 - c) / (1 + c * (1 - 2 * share)), abs=1e-6)
        assert found == pytest.approx(expected, abs=6e-4)


# BAPO: the accounts


def drifted(num=400_000, spread=0.35, good=0.35):
    """Tokens whose log-ratios are normal, a share of them good, with the z-scores of two rewards as advantages."""
    make = torch.Generator().manual_seed(0)
    ratio_N = (spread * torch.randn(num, generator=make, dtype=torch.float64)).exp()
    good_N = torch.rand(num, generator=make) < good
    return ratio_N, torch.where(good_N, math.sqrt((1 - good) / good), -math.sqrt(good / (1 - good))).double()


def share_of(accounting, low, high, strength=1.0):
    """The positive share of the contributions, where positive advantages are `strength` times what z-scores make them."""
    ratio_N, advantage_N = drifted()
    advantage_N = torch.where(advantage_N > 0, strength * advantage_N, advantage_N)
    positive, negative = bapo.contributions(ratio_N, advantage_N, low, high, bapo.Config(accounting=accounting))
    return positive / (positive + negative)


def test_raising_the_lower_bound_moves_the_surrogate_away_from_its_target_and_the_gradient_towards_it():
    """A token below the bound counts low |A| in place of the smaller u |A|; in the gradient it counts nothing."""
    for high in (1.2, 3.0):
        assert share_of("surrogate", 0.9, high) < share_of("surrogate", 0.6, high)
        assert share_of("gradient", 0.9, high) > share_of("gradient", 0.6, high)


def test_raising_the_upper_bound_moves_both_towards_their_target():
    for accounting in ("surrogate", "gradient"):
        for low in (0.6, 0.9):
            shares = [share_of(accounting, low, high) for high in (1.2, 1.5, 2.0, 3.0)]
            assert shares == sorted(shares)


PAIRS = [(0.6, 1.2), (0.9, 1.2), (0.6, 3.0), (0.9, 3.0)]


@pytest.mark.parametrize(
    ("accounting", "expected"), [("surrogate", (0.447, 0.432, 0.471, 0.456)), ("gradient", (0.344, 0.405, 0.480, 0.545))]
)
def test_shares_of_a_drifted_batch_are_those_of_an_independent_simulation(accounting, expected):
    """Its eight shares follow from log-ratios of spread 0.35, 35% good tokens, and one unknown: it does not say how large the
    advantages were. With z-scores over an endless batch the factor would be 1."""
    assert [share_of(accounting, *pair, strength=0.89) for pair in PAIRS] == pytest.approx(list(expected), abs=0.002)


def test_contributions_by_hand():
    ratio_N = torch.tensor([1.1, 2.0, 0.5, 1.5, 4.0])
    advantage_N = torch.tensor([1.0, 1.0, -2.0, -1.0, -1.0])
    config = bapo.Config()
    gradient, surrogate = (
        bapo.contributions(ratio_N, advantage_N, 0.8, 1.2, dataclasses.replace(config, accounting=kind))
        for kind in ("gradient", "surrogate")
    )
    assert gradient == pytest.approx((1.1, 1.5 + 4.0))
    assert surrogate == pytest.approx((1.1 + 1.2, 0.8 * 2 + 1.5 + 4.0))
    dual = bapo.contributions(ratio_N, advantage_N, 0.8, 1.2, dataclasses.replace(config, dual_clip=3.0))
    assert dual == pytest.approx((1.1, 1.5))


# BAPO: the search


def test_the_paper_widens_above_first_and_the_code_below_first():
    small = {"low_start": 0.6, "low_end": 0.8, "low_step": 0.1, "high_start": 1.2, "high_end": 1.4, "high_step": 0.1}
    paper, code = (list(bapo.bounds(bapo.Config(search=search, **small))) for search in ("paper", "code"))
    assert paper == [pytest.approx(pair) for pair in [(0.6, 1.2), (0.6, 1.3), (0.6, 1.4), (0.7, 1.4), (0.8, 1.4)]]
    assert code == [pytest.approx(pair) for pair in [(0.6, 1.2), (0.7, 1.2), (0.8, 1.2), (0.8, 1.3), (0.8, 1.4)]]


@pytest.mark.parametrize("method", [bapo.Config(), bapo.Config(search="code"), *bapo.NAMED.values()], ids=str)
def test_the_search_ends_and_its_bounds_never_narrow_again(method):
    tried = list(bapo.bounds(method))
    most = math.ceil((method.high_end - method.high_start) / method.high_step + 1e-9)
    most += math.ceil((method.low_end - method.low_start) / method.low_step + 1e-9)
    assert len(tried) <= most + 1
    for before, after in itertools.pairwise(tried):
        assert after[0] >= before[0] and after[1] >= before[1] and after != before
    assert tried[-1] == pytest.approx((method.low_end, method.high_end))


def chosen(config, ratio, advantage):
    """The bounds that a look at these tokens gives."""
    batch = batch_of(advantage, logp_behaviour=log(*[0.1] * len(ratio)))
    state = config.build().probe({"logp": log(*(0.1 * r for r in ratio))}, batch, {})
    return state["low"], state["high"]


def test_a_batch_without_failures_leaves_the_bounds_where_they_start():
    for config in (bapo.Config(), bapo.Config(search="code", accounting="surrogate", balance="to_negative", target=1.0)):
        assert chosen(config, [0.5, 1.0, 5.0], [1.0, 1.0, 1.0]) == (0.6, 1.2)
        assert chosen(config, [0.5, 1.0, 5.0], [0.0, 0.0, 0.0]) == (0.6, 1.2)


def test_a_batch_without_successes_runs_to_the_end_of_the_search():
    for config in (bapo.Config(), *bapo.NAMED.values()):
        assert chosen(config, [1.0, 1.5], [-1.0, -1.0]) == pytest.approx((config.low_end, config.high_end))


def test_the_search_stops_at_the_first_bounds_that_reach_the_target():
    """Positives of ratio 1.42 count from high = 1.45 on; failures of ratio 0.65 no longer from low = 0.66 on."""
    assert chosen(bapo.Config(), [1.42, 1.0], [1.0, -1.0]) == pytest.approx((0.6, 1.45))
    lower_first = bapo.Config(search="code", target=0.5)
    assert chosen(lower_first, [1.0, 0.65, 1.0], [1.0, -1.0, -1.0]) == pytest.approx((0.66, 1.2))


def test_in_the_released_code_the_lower_bound_never_reaches_the_target_by_itself():
    """Each of its steps leads away, so if the start misses the target it runs to its end before the upper bound moves."""
    tokens = tuple(column_N[:4000] for column_N in drifted())
    for config in (bapo.NAMED["code, yaml"], bapo.NAMED["code, script"]):
        tried = list(bapo.bounds(config))
        balance = [positive / negative for positive, negative in (bapo.contributions(*tokens, *pair, config) for pair in tried)]
        num_low = len({low for low, _ in tried})
        assert balance[:num_low] == sorted(balance[:num_low], reverse=True)
        assert balance[num_low - 1 :] == sorted(balance[num_low - 1 :])


def test_the_bounds_are_those_of_the_whole_minibatch(toy, tools):
    algorithm = bapo.Config(target=0.6).build()
    outputs = toy.outputs(toy.parameters)
    whole = tools.probed(algorithm, [(outputs, toy.batch)])
    for size in (1, 3):
        parts = torch.arange(len(toy.lengths)).split(size)
        cut = tools.probed(algorithm, [(toy.outputs(toy.parameters, rows), toy.batch.rows(rows)) for rows in parts])
        assert cut == whole
    own = [
        algorithm.probe({"logp": toy.outputs(toy.parameters, rows)["logp"]}, toy.batch.rows(rows), {})
        for rows in torch.arange(8).split(2)
    ]
    assert len({tuple(state.values()) for state in own}) > 1, "a micro-batch alone would have chosen others"


def test_bapo_with_bounds_that_cannot_move_is_ppos_clip(toy, tools):
    still = bapo.Config(low_start=0.8, low_end=0.8, high_start=1.2, high_end=1.2)
    assert same_gradient(tools, toy, still, grpo.Config(reduction="token_mean"))
    dual = dataclasses.replace(still, dual_clip=1.3)
    assert same_gradient(tools, toy, dual, grpo.Config(reduction="token_mean", dual_clip=1.3))


def test_the_loss_of_bapo_clips_at_the_bounds_that_were_chosen():
    batch = batch_of([1.0, 1.0, -1.0, -1.0], logp_behaviour=log(*[0.1] * 4))
    logp = log(0.14, 0.16, 0.065, 0.05).requires_grad_()
    algorithm = bapo.Config().build()
    out = algorithm.terms[0].loss({"logp": logp}, batch, {"low": 0.6, "high": 1.5})
    out.loss.sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([-1.4, 0.0, 0.65, 0.0])
    assert out.metrics["ratio/clipped"].value == 0.5
    assert (out.metrics["low"].value, out.metrics["high"].value) == (0.6, 1.5)


@pytest.mark.parametrize(
    ("method", "broken", "rule"),
    [
        (topr, {"negative_low": -0.1}, "0 <= negative_low <= 1 <= negative_high"),
        (topr, {"positive_high": 0.9}, "0 <= positive_low <= 1 <= positive_high"),
        (topr, {"baseline": math.nan}, "baseline is finite"),
        (bapo, {"low_start": 0.95}, "0 <= low_start <= low_end <= 1"),
        (bapo, {"high_start": 0.9}, "1 <= high_start <= high_end"),
        (bapo, {"low_step": 0.0}, "low_step > 0 and high_step > 0"),
        (bapo, {"dual_clip": 1.0}, "dual_clip > 1"),
    ],
)
def test_a_broken_config_says_which_rule_it_breaks(method, broken, rule):
    with pytest.raises(ConfigError) as caught:
        method.Config(**broken)
    assert caught.value.expected == rule
