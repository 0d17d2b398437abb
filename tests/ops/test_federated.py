"""The server's sum, by hand."""

import torch

from freerun.ops.federated import aggregated, change


def tensors(*numbers):
    return {"a": torch.tensor(numbers)}


def test_a_change_is_relative_to_what_was_sent():
    assert change(tensors(3.0, 1.0), tensors(1.0, 1.0))["a"].tolist() == [2.0, 0.0]


def test_changes_are_added_with_their_weights_and_the_step():
    now = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([7.0])}
    made = aggregated(now, [tensors(1.0, 0.0), tensors(0.0, -2.0)], [3.0, 0.5], lr=2.0)
    assert made["a"].tolist() == [1.0 + 6.0, 2.0 - 2.0]
    assert made["b"].tolist() == [7.0]
    assert now["a"].tolist() == [1.0, 2.0]


def test_one_client_that_is_up_to_date_replaces_the_weights():
    now, after = tensors(0.5, -1.0), tensors(4.0, 2.0)
    assert torch.equal(aggregated(now, [change(after, now)], [1.0])["a"], after["a"])
