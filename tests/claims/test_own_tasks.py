"""The small tasks that claims about baselines are tested on: what they say of methods whose answer is known."""

import pytest
import torch

from freerun.algorithms.language import drgrpo, grpo, reinforce, rloo, tis
from freerun.claims import mismatch
from freerun.claims.lengths import Choices
from freerun.ops.reduce import Reduction

START = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


def test_all_groups_together_give_the_gradient_to_an_unbiased_method():
    choices = Choices(lengths=(1, 3, 2), rewards=(0.0, 1.0, 2.0), start_PR=START)
    mean, variance = choices.moments(rloo.Config().build(), START, 3)
    assert torch.allclose(mean, choices.gradient(START), rtol=1e-5)
    assert variance > 0
    centred, _ = choices.moments(reinforce.Config(reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM).build(), START, 3)
    assert torch.allclose(centred, 2 / 3 * choices.gradient(START), rtol=1e-5)


def test_an_update_by_hand():
    """Response 1 (three tokens, reward 1) against response 0 (one token, reward 0): advantages .5 and -.5, scores e - p."""
    choices = Choices(lengths=(1, 3, 2), rewards=(0.0, 1.0, 2.0), start_PR=START)
    pair = (torch.tensor([0]), torch.tensor([[1, 0]]))
    score_1 = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64) - START.exp()
    score_0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64) - START.exp()
    whole = choices.update(drgrpo.Config(length=4).build(), START, *pair)
    assert torch.allclose(whole, (0.5 * score_1 - 0.5 * score_0) / 2 / 4, rtol=1e-6)
    divided = choices.update(grpo.Config(normalise="none").build(), START, *pair)
    assert torch.allclose(divided, (0.5 * score_1 / 3 - 0.5 * score_0) / 2, rtol=1e-6)


def test_without_noise_the_expected_update_is_the_gradient():
    for config in (tis.Config(), tis.Config(level="sequence"), grpo.Config(proximal="recomputed")):
        assert mismatch.one_step(config, 0, 0.0) == pytest.approx({"cosine": 1.0, "closeness": 1.0})


def test_unbounded_weights_take_the_noise_away_and_no_weights_do_not():
    assert mismatch.one_step(tis.Config(cap=1e9), 0, 0.5)["closeness"] == pytest.approx(1.0)
    assert mismatch.one_step(grpo.Config(proximal="recomputed"), 0, 0.5)["closeness"] < 0.9


def test_the_noise_belongs_to_the_sampler_and_repeats_with_the_seed():
    one, again, other = (mismatch.learned(tis.Config(), seed, 0.5, 3)["value"] for seed in (0, 0, 1))
    assert one == again != other
