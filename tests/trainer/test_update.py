"""The generic update against sums worked by hand. Shapes: B trajectories, T action tokens."""

import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.base import LossOut, Target, Term
from freerun.errors import ConfigError, MissingColumn
from freerun.ops.reduce import Reduction
from freerun.trainer.batch import PRODUCED
from freerun.trainer.forward import Predictions
from freerun.trainer.update import (
    GradientSum,
    check_algorithm,
    divide_and_clip,
    due,
    global_counts,
    share_a_count,
)
from freerun.types import Batch, Mean

MASK_BT = torch.tensor([[True, True, True], [True, False, False]])


def loss_of(name):
    """A term's loss: the log-prob itself, with a metric."""

    def loss(outputs, batch, state):
        return LossOut(outputs["logp"], {name: Mean(1.0, 1.0), "ratio/clipped": Mean(0.0, 1.0)})

    return Term(name=name, loss=loss)


def predictions(logp_BT):
    return Predictions(logp_BT, torch.ones_like(logp_BT))


@pytest.fixture
def algorithm(reinforce):
    return reinforce().build()


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (Reduction.TOKEN_MEAN, (1 + 2 + 3 + 10) / 4),
        (Reduction.SEQUENCE_MEAN_TOKEN_MEAN, (2 + 10) / 2),
        (Reduction.SEQUENCE_MEAN_TOKEN_SUM, (6 + 10) / 2),
    ],
)
@pytest.mark.parametrize("counted_first", [True, False])
def test_the_loss_of_a_step_is_the_reduction_over_all_its_micro_batches(algorithm, reduction, expected, counted_first) -> None:
    logp_BT = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.inf]])
    terms = (replace(loss_of("a"), reduction=reduction),)
    counts = global_counts(terms, Batch({"mask": MASK_BT})) if counted_first else None
    gradient = GradientSum(algorithm, terms, {}, counts)
    total = sum(
        gradient.loss(predictions(logp_BT[i : i + 1]), Batch({"mask": MASK_BT[i : i + 1]}), before_update=True)
        for i in range(2)
    )
    assert float(total) / gradient.divisor == pytest.approx(expected)
    assert gradient.metrics()["loss/a"].value == pytest.approx(expected)


def test_trajectories_known_to_be_silent_only_enlarge_the_count(algorithm) -> None:
    gradient = GradientSum(algorithm, (loss_of("a"),), {})
    gradient.loss(predictions(torch.tensor([[1.0, 2.0, 3.0]])), Batch({"mask": MASK_BT[:1]}), before_update=True)
    gradient.add_silent(Batch({"mask": MASK_BT[1:]}))
    assert gradient.divisor == 4
    assert gradient.metrics()["loss/a"].value == pytest.approx(6 / 4)


def test_terms_are_weighted(algorithm) -> None:
    terms = (loss_of("a"), replace(loss_of("b"), weight=0.5))
    gradient = GradientSum(algorithm, terms, {})
    total = gradient.loss(predictions(torch.ones(2, 3)), Batch({"mask": MASK_BT}), before_update=True)
    assert float(total) / gradient.divisor == pytest.approx(1.5)
    assert gradient.metrics()["loss/b"].value == pytest.approx(0.5)


def test_metrics_of_an_algorithm_get_its_prefix_unless_they_are_in_the_table(algorithm) -> None:
    gradient = GradientSum(algorithm, (loss_of("a"),), {})
    gradient.loss(predictions(torch.ones(2, 3)), Batch({"mask": MASK_BT}), before_update=True)
    assert {"algorithm/a", "ratio/clipped"} <= set(gradient.metrics())


def test_a_term_that_reads_a_missing_column_is_named(algorithm) -> None:
    gradient = GradientSum(algorithm, algorithm.terms, {})
    with pytest.raises(MissingColumn, match="term 'policy' of algorithm 'inline' reads column 'advantage'"):
        gradient.loss(predictions(torch.ones(2, 3)), Batch({"mask": MASK_BT}), before_update=True)


def test_terms_take_turns(reinforce) -> None:
    terms = (loss_of("a"), replace(loss_of("b"), every=3))
    algorithm = reinforce(changes={"terms": terms}).build()
    assert [[t.name for t in due(algorithm, n)] for n in range(4)] == [["a", "b"], ["a"], ["a"], ["a", "b"]]


def test_terms_share_a_count_if_they_share_mask_and_reduction() -> None:
    a = loss_of("a")
    assert share_a_count([]) and share_a_count([a, replace(a, name="b", weight=2.0)])
    assert not share_a_count([a, replace(a, reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN)])
    assert not share_a_count([a, replace(a, mask="mask_expert")])


def test_gradients_are_divided_then_clipped() -> None:
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(3, requires_grad=True)]
    parameters[0].grad, parameters[1].grad = torch.tensor([30.0, 0.0]), torch.tensor([40.0])
    assert divide_and_clip(parameters, divisor=10.0, clip_norm=1.0) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([3.0 / 5.0, 0.0])
    assert parameters[1].grad.tolist() == pytest.approx([4.0 / 5.0])
    assert parameters[2].grad.tolist() == [0.0] * 3, "no gradient is a gradient of 0"


def test_small_gradients_are_not_enlarged_and_clipping_can_be_off() -> None:
    for clip_norm in (1.0, 0.0):
        parameter = torch.zeros(1, requires_grad=True)
        parameter.grad = torch.tensor([0.5 if clip_norm else 50.0])
        divide_and_clip([parameter], divisor=1.0, clip_norm=clip_norm)
        assert parameter.grad.tolist() == [0.5 if clip_norm else 50.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"needs": frozenset({"mask", "values"})}, "batch columns that this trainer does not have: values"),
        ({"terms": (replace(loss_of("a"), mask="returns"),)}, "batch columns that this trainer does not have: returns"),
        ({"terms": (replace(loss_of("a"), trains=("world",)),)}, "networks that this trainer does not have: world"),
        ({"terms": (replace(loss_of("a"), outputs=("logp", "values")),)}, "network outputs that .* values"),
        ({"targets": (Target(online="policy", target="slow", rate=0.1),)}, "target networks that .* slow"),
        ({"events": {"full_moon": lambda state, metrics: state}}, "events that .* full_moon"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_with_the_algorithms_name(reinforce, changes, message) -> None:
    with pytest.raises(ConfigError, match=f"'inline' asks for {message}"):
        check_algorithm(reinforce(changes=changes).build(), PRODUCED)
