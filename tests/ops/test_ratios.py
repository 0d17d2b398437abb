"""Ratios and what is measured on them, against numbers worked by hand."""

import math

import pytest
import torch

from freerun.ops.ratios import (
    RatioSums,
    effective_sample_size,
    lag_counts,
    mismatch,
    ratio_sums,
    sequence_log_ratio,
    truncated,
    within,
)

LOG2 = math.log(2.0)
MASK_BT = torch.tensor([[True, True, True], [True, False, False]])
# Ratios 1, 2, 4 and, in the second row, 1/2; what stands on padding must not matter.
LOGP_BT = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, 50.0, -50.0]])
BEHAVIOUR_BT = torch.tensor([[-1.0, -1.0 - LOG2, -1.0 - 2 * LOG2], [-2.0 + LOG2, -50.0, 50.0]])


def test_ratio_sums_by_hand() -> None:
    sums = ratio_sums(LOGP_BT, BEHAVIOUR_BT, MASK_BT)
    assert (sums.count, sums.ratio, sums.ratio_squared, sums.ratio_max) == pytest.approx((4, 7.5, 21.25, 4))
    metrics = sums.metrics()
    assert metrics["ratio/mean"].value == pytest.approx(7.5 / 4)
    assert metrics["ratio/max"].value == pytest.approx(4)
    assert metrics["ess"].value == pytest.approx(7.5**2 / (4 * 21.25))


def test_ratio_sums_of_micro_batches_merge_to_those_of_the_batch() -> None:
    parts = [ratio_sums(LOGP_BT[i : i + 1], BEHAVIOUR_BT[i : i + 1], MASK_BT[i : i + 1]) for i in range(2)]
    whole = ratio_sums(LOGP_BT, BEHAVIOUR_BT, MASK_BT).metrics()
    merged = (parts[0] + parts[1] + RatioSums()).metrics()
    assert {k: v.value for k, v in merged.items()} == pytest.approx({k: v.value for k, v in whole.items()})


def test_effective_sample_size_by_hand() -> None:
    weights_BT = torch.tensor([[1.0, 2.0, 4.0], [0.5, 9.0, 9.0]])
    assert float(effective_sample_size(weights_BT, MASK_BT)) == pytest.approx(7.5**2 / (4 * 21.25))
    assert float(effective_sample_size(torch.full((2, 3), 0.3), MASK_BT)) == pytest.approx(1.0)
    assert float(effective_sample_size(weights_BT, torch.zeros_like(MASK_BT))) == 1.0


def test_a_ratio_is_truncated_before_it_can_overflow() -> None:
    torch.testing.assert_close(truncated(torch.tensor([-1000.0, 0.0, 1000.0]), 4.0), torch.tensor([0.0, 1.0, 4.0]))


def test_within_keeps_its_bounds() -> None:
    log_ratio = torch.tensor([0.49, 0.51, 1.0, 4.9, 5.1]).log()
    assert within(log_ratio, 0.5, 5.0).tolist() == [False, True, True, True, False]
    assert within(torch.tensor([-math.inf, 0.0]), 0.0, 1.0).tolist() == [True, True]


def test_sequence_ratios_are_products_or_geometric_means_over_the_mask() -> None:
    log_ratio_BT = LOGP_BT - BEHAVIOUR_BT
    product_B1 = sequence_log_ratio(log_ratio_BT, MASK_BT, mean=False).exp()
    torch.testing.assert_close(product_B1, torch.tensor([[8.0], [0.5]]))
    geometric_B1 = sequence_log_ratio(log_ratio_BT, MASK_BT, mean=True).exp()
    torch.testing.assert_close(geometric_B1, torch.tensor([[2.0], [0.5]]))
    assert sequence_log_ratio(log_ratio_BT, MASK_BT & False, mean=True).tolist() == [[0.0], [0.0]]


def test_mismatch_by_hand() -> None:
    lag_BT = torch.tensor([[0, 0, 1], [2, 0, 0]])
    found = mismatch(LOGP_BT, BEHAVIOUR_BT, lag_BT, MASK_BT)
    assert found["mismatch/abs_mean"].value == pytest.approx(4 * LOG2 / 4)
    assert found["mismatch/abs_max"].value == pytest.approx(2 * LOG2)
    # r - 1 - log r over r = 1, 2, 4, 1/2
    assert found["mismatch/k3"].value == pytest.approx((0 + (1 - LOG2) + (3 - 2 * LOG2) + (-0.5 + LOG2)) / 4)
    assert found["mismatch/lag0_abs_mean"].value == pytest.approx(LOG2 / 2)


def test_without_fresh_tokens_nothing_is_said_about_numerics() -> None:
    assert "mismatch/lag0_abs_mean" not in mismatch(LOGP_BT, BEHAVIOUR_BT, torch.ones(2, 3), MASK_BT)


def test_measurements_of_no_tokens_are_finite() -> None:
    empty_BT = torch.zeros(0, 0)
    records = (
        mismatch(empty_BT, empty_BT, empty_BT, empty_BT.bool()) | ratio_sums(empty_BT, empty_BT, empty_BT.bool()).metrics()
    )
    assert all(math.isfinite(metric.value) for metric in records.values())


def test_lag_counts() -> None:
    assert lag_counts(torch.tensor([0, 2, 0, 1, 0])) == {0: 3.0, 1: 1.0, 2: 1.0}
