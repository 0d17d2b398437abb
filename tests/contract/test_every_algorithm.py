"""What every language algorithm promises. `conftest.py` finds the files and their named options; nothing is listed here."""

import ast
import dataclasses
import enum
import itertools
import json
import math
import pathlib
import re
import sys
import typing
from collections.abc import Mapping

import pytest
import torch
from torch.overrides import TorchFunctionMode

from freerun.errors import ConfigError, DataError
from freerun.metrics import describe
from freerun.ops.reduce import Reduction
from freerun.types import COLUMNS, Batch
from tools import source


class Recorded(Mapping):
    """A mapping that remembers which names were looked up, and by `in`."""

    def __init__(self, values):
        self.values_, self.read = values, set()

    def __getitem__(self, name):
        self.read.add(name)
        return self.values_[name]

    def __contains__(self, name):
        self.read.add(name)
        return name in self.values_

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


class FrozenDetach(TorchFunctionMode):
    """Gives `detach` the values it had on the first pass, so that a finite difference holds them still as a gradient does."""

    def __init__(self):
        super().__init__()
        self.values, self.position = [], None

    def replay(self):
        self.position = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is not torch.Tensor.detach:
            return result
        if self.position is None:
            self.values.append(result)
            return result
        self.position += 1
        return self.values[self.position - 1]


def test_masked_elements_get_exactly_zero_gradient(config, toy, tools):
    """Padding may hold anything finite, and log-probs of minus infinity."""
    mask_BT = toy.batch["mask"]
    outputs = {name: value.clone() for name, value in toy.outputs(toy.parameters).items()}
    for name, value in outputs.items():
        value[~mask_BT] = -math.inf if name == "logp" else 1e4
        value.requires_grad_()
    columns = {name: column.clone() for name, column in toy.batch.items()}
    for column in columns.values():
        if column.dim() == 2 and column.dtype.is_floating_point:
            column[~mask_BT] = 1e4
    step = [(outputs, Batch(columns))]
    loss, metrics = tools.step_loss(config.build(), step)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(math.isfinite(metric.value) for metric in metrics.values())
    for value in outputs.values():
        if value.grad is not None:
            assert torch.equal(value.grad[~mask_BT], torch.zeros_like(value.grad[~mask_BT]))
            assert bool(value.grad[mask_BT].isfinite().all())
    assert outputs["logp"].grad[mask_BT].abs().sum() > 0


@pytest.mark.parametrize("num_micro_batches", [2, 8])
def test_the_gradient_does_not_depend_on_micro_batches(config, toy, tools, num_micro_batches):
    whole = tools.step_gradient(config.build(), toy, toy.batch)
    assert torch.allclose(tools.step_gradient(config.build(), toy, toy.batch, num_micro_batches), whole, rtol=1e-6, atol=1e-9)
    assert whole.abs().sum() > 0


def test_metrics_of_micro_batches_merge_to_those_of_the_whole(config, toy, tools):
    parts = torch.arange(len(toy.lengths)).split(3)
    whole = tools.step_loss(config.build(), [(toy.outputs(toy.parameters), toy.batch)])[1]
    cut = tools.step_loss(config.build(), [(toy.outputs(toy.parameters, rows), toy.batch.rows(rows)) for rows in parts])[1]
    assert set(whole) == set(cut)
    for name, metric in whole.items():
        assert cut[name].value == pytest.approx(metric.value, rel=1e-5)
        # A name with a slash is one of the table of metrics, any other gets the prefix `algorithm/` from the trainer.
        assert describe(name if "/" in name else f"algorithm/{name}")


def test_needs_are_the_columns_that_are_read(config, toy):
    algorithm, read = config.build(), set()
    used, looked = Recorded(toy.batch), Recorded(toy.batch)
    made = algorithm.prepare(used, algorithm.init()) if algorithm.prepare else {}
    outputs, state = toy.outputs(toy.parameters), algorithm.init()
    if algorithm.probe:
        state = algorithm.probe({name: value.detach() for name, value in outputs.items()}, looked, state)
    for term in algorithm.terms:
        batch = Recorded(toy.batch.with_columns(**made))
        term.loss(outputs, batch, state)
        read |= batch.read | {term.mask}
    assert read | looked.read == algorithm.needs
    assert used.read == algorithm.uses
    assert set(made) == algorithm.makes
    assert algorithm.needs | algorithm.uses | algorithm.makes <= set(COLUMNS)


def test_outputs_are_those_that_are_read(config, toy, tools):
    algorithm = config.build()
    state = tools.probed(algorithm, [(toy.outputs(toy.parameters), toy.batch)])
    for term in algorithm.terms:
        outputs = Recorded(toy.outputs(toy.parameters))
        term.loss(outputs, toy.batch, state)
        assert outputs.read == set(term.outputs)


def test_a_missing_column_is_an_error_that_names_it(config, toy, tools):
    algorithm, outputs = config.build(), toy.outputs(toy.parameters)
    for missing in sorted(algorithm.columns):
        batch = Batch({name: column for name, column in toy.batch.items() if name != missing}, reader=algorithm.name)
        with pytest.raises(KeyError, match=missing):
            tools.step_loss(algorithm, [(outputs, tools.prepared(algorithm, batch))])


def test_a_policy_gradient_reduces_to_reinforce_when_all_policies_are_one(policy_gradient, toy, tools):
    """The first term, on the advantage as `prepare` leaves it."""
    algorithm = policy_gradient.build()
    batch, term = tools.prepared(algorithm, toy.on_policy()), algorithm.terms[0]
    parameters = toy.parameters.clone().requires_grad_()
    mask_BT = batch[term.mask]
    length_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    num_rows = mask_BT.any(-1).sum()
    group_BB = batch["group"][:, None] == batch["group"]
    weight_BT = {
        Reduction.TOKEN_MEAN: mask_BT / mask_BT.sum(),
        Reduction.SEQUENCE_MEAN_TOKEN_MEAN: mask_BT / length_B1 / num_rows,
        Reduction.SEQUENCE_MEAN_TOKEN_SUM: mask_BT / num_rows,
        Reduction.PROMPT_MEAN: mask_BT / (group_BB * mask_BT.sum(-1)).sum(-1, keepdim=True) / 2,
    }[term.reduction]
    (-term.weight * weight_BT * batch["advantage"] * toy.outputs(parameters)["logp"]).sum().backward()
    first = dataclasses.replace(algorithm, terms=(term,), prepare=None)
    assert torch.allclose(tools.step_gradient(first, toy, batch), parameters.grad, rtol=1e-6, atol=1e-7)


def test_the_gradient_is_the_finite_difference_with_detached_quantities_held_still(config, toy, tools):
    algorithm, make = config.build(), torch.Generator().manual_seed(1)
    parameters = toy.parameters.clone().requires_grad_()
    frozen, step = FrozenDetach(), 1e-6

    def loss_at(point):
        with frozen:
            return tools.step_loss(algorithm, [(toy.outputs(point), toy.batch)])[0]

    loss_at(parameters).backward()
    for _ in range(6):
        direction = torch.randn(parameters.shape, generator=make, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            frozen.replay()
            values.append(loss_at(toy.parameters + sign * step * direction).item())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            float((parameters.grad * direction).sum()), rel=1e-4, abs=1e-8
        )


def test_no_gradient_reaches_a_batch_column(config, toy, tools):
    columns = {n: c.clone().requires_grad_() if c.dtype.is_floating_point else c for n, c in toy.batch.items()}
    parameters = toy.parameters.clone().requires_grad_()
    tools.step_loss(config.build(), [(toy.outputs(parameters), Batch(columns))])[0].backward()
    assert [name for name, column in columns.items() if column.grad is not None] == []


def test_a_loss_is_pure(config, toy, tools):
    before = {name: column.clone() for name, column in toy.batch.items()}
    first = tools.step_gradient(config.build(), toy, toy.batch)
    assert torch.equal(tools.step_gradient(config.build(), toy, toy.batch), first)
    assert all(torch.equal(toy.batch[name], column) for name, column in before.items())


def test_the_order_of_rows_and_extra_padding_change_nothing(config, toy, tools):
    algorithm = config.build()
    gradient = tools.step_gradient(algorithm, toy, toy.batch)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    extra = 3
    columns = {name: column[order] for name, column in toy.batch.items()}
    for name, column in columns.items():
        if column.dim() == 2:
            columns[name] = torch.cat([column, column.new_zeros(len(order), extra)], -1)
    toy.states_BT = torch.cat([toy.states_BT[order], toy.states_BT[:, :extra]], -1)
    toy.tokens_BT = torch.cat([toy.tokens_BT[order], toy.tokens_BT[:, :extra]], -1)
    assert torch.allclose(tools.step_gradient(algorithm, toy, Batch(columns)), gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "rewards",
    [[1.0], [0.0], [0.5, 0.5, 0.5], [1e6, -1e6], [0.1, 0.1 + 1e-9]],
    ids=["one", "zero", "equal", "huge", "nearly equal"],
)
def test_credit_and_gradient_are_finite_for_every_group_that_is_not_refused(config, toy, tools, rewards):
    """A method to which some rewards mean nothing says so, with the rewards and what to do."""
    algorithm = config.build()
    group = tools.group_of(rewards)
    try:
        advantage_G, state = algorithm.credit(group, algorithm.init())
    except DataError as refused:
        assert str(rewards) in refused.given
        assert "--algorithm." in refused.todo
        return
    assert len(advantage_G) == len(rewards)
    assert advantage_G.dim() in (1, 2)
    assert bool(advantage_G.isfinite().all())
    assert set(state) == set(algorithm.init())
    worst = advantage_G.double().abs().max()
    batch = toy.batch.with_columns(advantage=torch.full_like(toy.batch["advantage"], worst.item()))
    assert bool(tools.step_gradient(algorithm, toy, batch).isfinite().all())


def test_a_group_baseline_gives_no_credit_where_there_is_nothing_to_compare(policy_gradient, tools):
    algorithm = policy_gradient.build()
    for rewards in ([1.0], [1.0, 1.0, 1.0]):
        advantage_G, _ = algorithm.credit(tools.group_of(rewards), algorithm.init())
        assert bool((advantage_G == 0).all()) == algorithm.group_baseline


def test_advantages_gate_the_loss_just_where_the_algorithm_says_so(config, toy, tools):
    """The trainer does not compute trajectories without credit if the algorithm declares that they cannot matter."""
    algorithm = config.build()
    gradient = tools.step_gradient(algorithm, toy, toy.batch.with_columns(advantage=torch.zeros_like(toy.batch["advantage"])))
    assert bool((gradient == 0).all()) == algorithm.advantage_gates


def test_a_batch_without_a_single_action_has_zero_gradient(config, toy, tools):
    masks = {name: torch.zeros_like(column) for name, column in toy.batch.items() if name.startswith("mask")}
    batch = toy.batch.with_columns(**masks)
    gradient = tools.step_gradient(config.build(), toy, batch)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_extreme_ratios_give_finite_gradients(config, toy, tools):
    for shift in (-1e3, 1e3):
        far = {n: toy.batch[n] + shift for n in ("logp_behaviour", "logp_proximal", "logp_reference")}
        assert bool(tools.step_gradient(config.build(), toy, toy.batch.with_columns(**far)).isfinite().all())


def test_config_survives_json_both_ways(config):
    again = type(config)(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert again.build().needs == config.build().needs
    assert all(type(term.reduction) is Reduction for term in again.build().terms)


def test_config_is_frozen_slotted_and_keyword_only(module):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(module.Config(), dataclasses.fields(module.Config)[0].name, None)
    assert not hasattr(module.Config(), "__dict__")
    with pytest.raises(TypeError):
        module.Config(1.0)


def test_a_value_that_no_option_names_is_a_config_error(module):
    hints = typing.get_type_hints(module.Config)
    options = [n for n, kind in hints.items() if typing.get_origin(kind) is typing.Literal or isinstance(kind, enum.EnumType)]
    for name in options:
        with pytest.raises(ConfigError, match=name):
            module.Config(**{name: "no such option"})


def test_the_algorithm_is_named_after_its_file(module):
    assert module.Config().build().name == module.__name__.rsplit(".", 1)[1]


def test_docstring_has_a_summary_a_reference_and_the_rest_of_the_form(module):
    summary = module.__doc__.partition("\n")[0]
    assert summary.endswith(".")
    assert 20 <= len(summary) <= 125
    assert re.search(r"^Paper .*\b(arXiv \d{4}\.\d{4,5}|(19|20)\d\d)\b", module.__doc__, re.MULTILINE)
    for heading in ("Estimator", "Equation", "Assumption", "Degenerate", "State"):
        assert re.search(rf"^{heading} +\S", module.__doc__, re.MULTILINE), f"{heading} is missing"


def test_every_config_field_says_what_it_is(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), f"{field.target.id} has no docstring"


def test_an_algorithm_imports_only_words_maths_and_its_contract(module):
    allowed = re.compile(r"freerun\.(types|errors|ops\.\w+|algorithms\.base)|torch(\.\w+)*")
    names = [found.target for found in source.imports(source.modules()[module.__name__])]
    assert [n for n in names if n.partition(".")[0] not in sys.stdlib_module_names and not allowed.fullmatch(n)] == []


def test_reading_an_algorithm_and_all_it_imports_takes_at_most_800_lines(module):
    """Blank lines are free: nobody reads them."""
    closure = source.closure(module.__name__)
    assert sum(source.modules()[name].num_written_lines for name in closure) <= 800, closure
