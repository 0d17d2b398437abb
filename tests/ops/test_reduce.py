"""The step's one division."""

import pytest
import torch

from freerun.ops.reduce import Reduction, count, element_weights, means, weighted_sum
from freerun.types import Mean

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
ONE_GROUP = {"group_tokens": torch.tensor([4, 4, 4])}
LOSS = torch.tensor([[1.0, 2.0, 3.0, 9.0], [10.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])


@pytest.mark.parametrize(
    ("reduction", "value"),
    [
        (Reduction.TOKEN_MEAN, 16 / 4),
        (Reduction.SEQUENCE_MEAN_TOKEN_MEAN, (2 + 10) / 2),
        (Reduction.SEQUENCE_MEAN_TOKEN_SUM, (6 + 10) / 2),
        (Reduction.PROMPT_MEAN, 16 / 4),
    ],
)
def test_reductions_by_hand_with_an_empty_row_that_does_not_count(reduction, value):
    total = weighted_sum(LOSS, element_weights(MASK, reduction, ONE_GROUP))
    assert float(total / count(MASK, reduction, ONE_GROUP)) == pytest.approx(value)


def test_the_mean_over_prompts_weighs_a_prompt_of_short_responses_like_one_of_long_responses():
    batch = {"group_tokens": torch.tensor([3, 1, 1])}
    total = weighted_sum(LOSS, element_weights(MASK, Reduction.PROMPT_MEAN, batch))
    assert float(count(MASK, Reduction.PROMPT_MEAN, batch)) == 2
    assert float(total) == pytest.approx(2 + 10)


def test_the_mean_over_prompts_cannot_do_without_the_tokens_of_each_group():
    assert Reduction.PROMPT_MEAN.columns == {"group_tokens"}
    with pytest.raises(KeyError, match="group_tokens"):
        element_weights(MASK, Reduction.PROMPT_MEAN)


@pytest.mark.parametrize("reduction", list(Reduction))
def test_sums_and_counts_of_parts_add_up_to_those_of_the_whole(reduction):
    parts = [(LOSS[i : i + 1], MASK[i : i + 1], {"group_tokens": ONE_GROUP["group_tokens"][i : i + 1]}) for i in range(3)]
    total = sum(weighted_sum(loss, element_weights(mask, reduction, batch)) for loss, mask, batch in parts)
    num = sum(count(mask, reduction, batch) for _, mask, batch in parts)
    whole = weighted_sum(LOSS, element_weights(MASK, reduction, ONE_GROUP)) / count(MASK, reduction, ONE_GROUP)
    assert float(total / num) == pytest.approx(float(whole))


def test_masked_elements_contribute_nothing_even_where_their_loss_is_not_finite():
    x = torch.tensor([[0.5, float("nan"), -float("inf")]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    total = weighted_sum(2 * x, element_weights(mask, Reduction.TOKEN_MEAN))
    total.backward()
    assert total.item() == 1.0
    assert x.grad.tolist() == [[2.0, 0.0, 0.0]]


def test_means_record_masked_sums_and_counts_without_a_gradient():
    x = LOSS.clone().requires_grad_()
    x.data[2, 0] = float("nan")
    assert means(MASK, loss=x, large=x > 2.5) == {"loss": Mean(16.0, 4.0), "large": Mean(2.0, 4.0)}


def test_means_over_nothing_count_zero():
    assert means(MASK[2:], loss=LOSS[2:]) == {"loss": Mean(0.0, 0.0)}
