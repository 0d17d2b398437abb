"""Comparisons inside the groups of a batch: two groups of three and two, interleaved, and a row that does not count."""

import pytest
import torch

from freerun.ops import advantages, groups

GROUP = torch.tensor([0, 1, 0, 1, 0, 2, 0])
THERE = torch.tensor([True, True, True, True, True, True, False])
VALUE = torch.tensor([3.0, 5.0, 1.0, 5.0, 2.0, 7.0, 100.0])


def test_each_is_compared_with_the_mean_of_the_others_of_its_group():
    assert groups.leave_one_out(VALUE, GROUP, THERE).tolist() == [1.5, 0.0, -1.5, 0.0, 0.0, 0.0, 0.0]
    assert torch.equal(groups.leave_one_out(VALUE, GROUP, THERE)[[0, 2, 4]], advantages.leave_one_out(VALUE[[0, 2, 4]]))


def test_one_of_each_group_is_the_first_of_the_highest():
    assert groups.first_of_the_highest(VALUE, GROUP, THERE).tolist() == [True, True, False, False, False, True, False]
    assert groups.first_of_the_highest(-VALUE, GROUP, THERE).tolist() == [False, True, True, False, False, True, False]


@pytest.mark.parametrize("num", range(1, 21))
def test_the_share_kept_is_rounded_up(num):
    """`ceil(0.8 n)`, in whole numbers, because 0.8 has no exact float."""
    kept = groups.highest(torch.rand(num), torch.zeros(num, dtype=torch.int64), torch.ones(num, dtype=torch.bool), 0.8)
    assert int(kept.sum()) == -(-8 * num // 10)


def test_those_of_highest_value_are_kept_and_equals_are_treated_alike():
    assert groups.highest(VALUE, GROUP, THERE, 0.5).tolist() == [True, True, False, True, True, True, False]
    assert groups.highest(VALUE, GROUP, THERE, 1.0).tolist() == THERE.tolist()


def test_no_groups_are_no_comparison():
    none, index = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert groups.leave_one_out(none, index, none.bool()).shape == (0,)
    assert groups.first_of_the_highest(none, index, none.bool()).shape == (0,)
    assert groups.highest(none, index, none.bool(), 0.8).shape == (0,)
