"""What the study of staleness concludes, on numbers worked by hand."""

import pytest

from freerun.claims.staleness import holds_to, losses

CELLS = {
    "0": {"0": {"accuracy": 0.90}, "1": {"accuracy": 0.50}},
    "2": {"0": {"accuracy": 0.88}, "1": {"accuracy": 0.46}},
    "4": {"0": {"accuracy": 0.70}, "1": {"accuracy": 0.50}},
    "8": {"0": {"accuracy": 0.90}, "1": {"accuracy": 0.50}},
}


def test_a_loss_is_the_difference_of_the_same_seed_at_lag_zero() -> None:
    assert losses(CELLS, "2") == pytest.approx([0.02, 0.04])
    assert losses(CELLS, "4") == pytest.approx([0.20, 0.0])


def test_a_method_holds_to_the_lag_before_the_first_that_costs_too_much_whatever_comes_after() -> None:
    assert holds_to(CELLS) == 2
    assert holds_to({lag: CELLS[lag] for lag in ("0", "2")}) == 2
    assert holds_to({lag: CELLS[lag] for lag in ("0", "8", "4")}) == 0
