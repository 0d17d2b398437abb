"""From numbers per seed to a verdict, by hand."""

import math

import pytest

from freerun.claims.verdict import Interval, Verdict, interval, judge, quantile, together


def test_the_interval_of_three_values_is_students():
    """s = 1 and n = 3, so the reach is 4.302653 / sqrt(3)."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_equal_values_have_no_spread():
    assert interval([0.25, 0.25, 0.25, 0.25]) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (20, 2.0860), (30, 2.0423), (120, 1.9799)]
)
def test_quantiles_are_those_of_the_tables(degrees, expected):
    assert quantile(degrees) == pytest.approx(expected, abs=1e-4)


def test_quantiles_fall_towards_that_of_the_normal_distribution():
    values = [quantile(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert quantile(10**6) == pytest.approx(1.959964, abs=1e-5)


def test_a_difference_holds_above_the_margin_fails_below_it_and_is_unclear_around_it():
    assert judge(Interval(0.10, 0.06, 0.14), 0.05) is Verdict.HOLDS
    assert judge(Interval(0.02, 0.00, 0.04), 0.05) is Verdict.FAILS
    assert judge(Interval(0.06, 0.04, 0.08), 0.05) is Verdict.UNCLEAR


def test_no_difference_at_all_is_not_better_but_it_is_not_worse_by_a_margin_either():
    assert judge(Interval(0.0, 0.0, 0.0), 0.0) is Verdict.FAILS
    assert judge(Interval(0.0, 0.0, 0.0), -0.01) is Verdict.HOLDS


def test_an_interval_that_ends_at_the_margin_is_not_above_it():
    assert judge(Interval(0.1, 0.0, 0.2), 0.0) is Verdict.UNCLEAR
    assert judge(Interval(-0.1, -0.2, 0.0), 0.0) is Verdict.FAILS


def test_more_seeds_with_the_same_spread_decide_what_few_leave_open():
    values = [0.0, 0.1, 0.2]
    assert judge(interval(values), 0.0) is Verdict.UNCLEAR
    assert judge(interval(values * 4), 0.0) is Verdict.HOLDS
    assert math.isclose(interval(values).mean, interval(values * 4).mean)


def test_one_part_that_fails_refutes_the_whole_and_one_that_is_unclear_leaves_it_open():
    holds, fails, unclear = Verdict.HOLDS, Verdict.FAILS, Verdict.UNCLEAR
    assert together([holds, holds]) is holds
    assert together([holds, unclear]) is unclear
    assert together([unclear, fails, holds]) is fails
