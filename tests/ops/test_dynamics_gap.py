"""Ratios of dynamics from two discriminators, by hand."""

import math

import pytest
import torch

from freerun.ops import dynamics_gap as gap


def test_the_ratio_of_dynamics_is_what_the_next_state_adds_to_state_and_action():
    """Both posteriors by hand, and log p_sas - log p_sa for real less that for simulated."""
    alone, added = torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, 0.5]])
    p_sa, p_sas = alone.log_softmax(-1), (alone + added).log_softmax(-1)
    by_hand = (p_sas[0, 0] - p_sas[0, 1]) - (p_sa[0, 0] - p_sa[0, 1])
    assert gap.log_ratio(added).item() == pytest.approx(by_hand.item()) == pytest.approx(0.5)


def test_the_best_discriminators_give_the_ratio_of_densities():
    """Worlds with s' of 0 or 1: real with odds 3:1, simulated 1:1; of equal numbers of rows, the best posterior of real at 0 is
    0.75 / 1.25 = 0.6. Logits (a, 0) give it for a = log 1.5, and log 1.5 is log P_real / P_sim."""
    best = torch.tensor([[math.log(1.5), 0.0]])
    assert best.softmax(-1)[0, 0].item() == pytest.approx(0.6)
    assert gap.log_ratio(best).item() == pytest.approx(math.log(0.75 / 0.5))


def test_logits_are_bounded():
    assert gap.bounded(torch.tensor([0.0, 100.0, -100.0])).tolist() == [0.0, 2.0, -2.0]


def test_both_discriminators_are_trained_on_the_label():
    alone, added = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    assert gap.classification_loss(alone, added, gap.REAL).item() == pytest.approx(math.log(2.0) + math.log(4 / 3))
    assert gap.classification_loss(alone, added, gap.SIMULATED).item() == pytest.approx(math.log(2.0) + math.log(4.0))


def test_shares_are_in_proportion_to_the_gap_and_add_up_to_one():
    """Means over two scattered observations: gaps of 1, 3, and of less than nothing, which counts as nearly nothing."""
    log_ratio_KB = torch.tensor([[-0.5, -2.0, 1.0], [-1.5, -4.0, 0.5]])
    assert gap.gap_shares(log_ratio_KB, 10.0).tolist() == pytest.approx([0.25, 0.75, 0.0], abs=1e-5)
    assert gap.gap_shares(log_ratio_KB, 2.0).tolist() == pytest.approx([1 / 3, 2 / 3, 0.0], abs=1e-5)
    assert gap.gap_shares(torch.zeros(4, 5), 10.0).tolist() == pytest.approx([0.2] * 5)
