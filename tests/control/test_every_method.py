"""What every control method promises. `conftest.py` finds the files and their named options; nothing is listed here."""

import ast
import copy
import dataclasses
import enum
import itertools
import json
import pathlib
import re
import sys
import typing
from collections.abc import Mapping

import pytest
import torch
from torch.overrides import TorchFunctionMode

from freerun import config as configs
from freerun.algorithms.control_base import Ask
from freerun.errors import ConfigError
from freerun.metrics import describe
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.control_update import Updater
from freerun.trainer.sources import Batches
from freerun.transitions import TRANSITIONS, transitions
from tools import source


class Recorded(Mapping):
    """A mapping that remembers which names were looked up."""

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


class NoNoise(TorchFunctionMode):
    """Random numbers are all one half, whatever the order of rows."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.randn, torch.rand) or func is torch.Tensor.exponential_:
            return result.fill_(0.5)
        return result


# --- data --------------------------------------------------------------------------------------------------------------------


def test_needs_are_the_columns_that_are_read(toy):
    algorithm, read, used = toy.algorithm, set(), Recorded(toy.chunk)
    made = set(algorithm.prepare(toy.networks, used, toy.state)) if algorithm.prepare else set()
    for term in algorithm.terms:
        batch = Recorded(toy.batch)
        term.loss(toy.networks, batch, toy.state, torch.Generator())
        read |= batch.read
    assert read == algorithm.needs
    assert used.read == algorithm.uses
    assert made == algorithm.makes
    assert algorithm.needs | algorithm.uses | algorithm.makes <= set(TRANSITIONS)


def test_a_missing_column_is_an_error_that_names_it(toy):
    for missing in sorted(toy.algorithm.needs):
        batch = transitions({k: v for k, v in toy.batch.items() if k != missing}, reader=f"algorithm '{toy.algorithm.name}'")
        with pytest.raises(KeyError, match=missing):
            toy.losses(batch)


def test_where_the_task_ended_the_next_observation_changes_nothing(toy):
    """A terminated step has no value beyond, so what a network would say there cannot reach a gradient."""
    ended = toy.chunk["terminated"]
    next_obs = torch.where(ended[..., None], 100.0, toy.chunk["next_obs"])
    before, after = toy.gradients(toy.batch), toy.gradients(toy.rows(toy.chunk.with_columns(next_obs=next_obs)))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_has_a_finite_value_for_each_row(toy):
    for mean, out in toy.losses(toy.batch).values():
        assert out.loss.shape == (toy.steps * toy.envs,)
        assert bool(out.loss.isfinite().all())
        assert mean.requires_grad
        assert out.surprise is None or (out.surprise.shape == out.loss.shape and bool((out.surprise >= 0).all()))


def test_what_is_watched_has_a_name_that_reports_know(toy):
    for _, out in toy.losses(toy.batch).values():
        assert all(describe(name if "/" in name or name == "entropy" else f"algorithm/{name}") for name in out.watch)
        assert all(bool(value.float().isfinite().all()) for value in out.watch.values())


@pytest.mark.parametrize("case", ["one row", "equal rows", "huge rewards", "actions at the bounds", "unlikely actions"])
def test_the_gradient_is_finite_for_degenerate_batches(toy, case):
    columns = dict(toy.batch)
    if case == "one row":
        columns = {name: column[:1] for name, column in columns.items()}
    elif case == "equal rows":
        columns = {name: column[:1].expand(column.shape).contiguous() for name, column in columns.items()}
    elif case == "huge rewards":
        for name in ("reward", "returns", "advantage", "mc_return"):
            columns |= {name: 1e6 * columns[name]} if name in columns else {}
    elif case == "actions at the bounds" and not toy.spaces.discrete:
        columns["action"] = columns["action"].sign()
    elif case == "unlikely actions":
        columns["log_prob"] = columns["log_prob"] - 100.0
    for name, gradient in toy.gradients(transitions(columns)).items():
        assert bool(gradient.isfinite().all()), name


def test_the_order_of_rows_changes_nothing(toy):
    order = torch.randperm(toy.steps * toy.envs, generator=torch.Generator().manual_seed(2))
    with NoNoise():
        before, after = toy.gradients(toy.batch), toy.gradients(toy.batch.rows(order))
    for name in before:
        assert float((before[name] - after[name]).norm()) <= 1e-4 * float(before[name].norm()), name


# --- gradients ---------------------------------------------------------------------------------------------------------------


def test_every_network_that_a_term_trains_gets_a_gradient(toy):
    for term in toy.algorithm.terms:
        for name in term.trains:
            loss = toy.losses(toy.batch)[term.name][0]
            gradients = torch.autograd.grad(loss, list(toy.networks[name].parameters()), allow_unused=True)
            assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, (term.name, name)


def test_gradients_go_through_the_present_and_through_no_target(toy):
    """Only what networks see now is differentiated: no reward, no recorded log-prob, no next observation."""
    columns = {n: c.clone().requires_grad_() if c.is_floating_point() else c for n, c in toy.batch.items()}
    for mean, _ in toy.losses(transitions(columns)).values():
        mean.backward()
    assert {name for name, column in columns.items() if column.grad is not None} <= {"obs", "action"}


def test_a_loss_is_pure(toy):
    batch = {name: column.clone() for name, column in toy.batch.items()}
    weights = {n: copy.deepcopy(m.state_dict()) for n, m in toy.networks.items()}
    first, again = toy.gradients(toy.batch), toy.gradients(toy.batch)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(batch[name], column) for name, column in toy.batch.items())
    for name, network in toy.networks.items():
        assert all(torch.equal(weights[name][key], value) for key, value in network.state_dict().items())


def updater_of(toy):
    updater = Updater(toy.algorithm, toy.spaces, ControlTrainerConfig())
    for name, network in updater.networks.items():
        network.load_state_dict(toy.networks[name].state_dict())
    updater.remember("dataset", toy.batch["obs"], toy.batch["action"])
    return updater


def changed(updater, toy, phase, num=1):
    """Networks that `num` updates have changed."""
    before = {n: copy.deepcopy(m.state_dict()) for n, m in updater.networks.items()}
    for _ in range(num):
        updater.update(Batches(toy.by_source), toy.state, torch.Generator(), phase, lr_share=1.0, report=True)
    return {n for n, m in updater.networks.items() if any(not torch.equal(before[n][k], v) for k, v in m.state_dict().items())}


def test_an_update_changes_what_terms_train_and_targets_and_nothing_else(toy):
    num = max(max(t.every for t in toy.algorithm.terms), *(t.every for t in toy.algorithm.targets), 1)
    named = {name for term in toy.algorithm.terms for name in term.trains} | {t.target for t in toy.algorithm.targets}
    assert changed(updater_of(toy), toy, Phase(updates=1), num) == named


def test_a_term_moves_no_network_but_its_own(toy):
    for term in toy.algorithm.terms:
        others = tuple(other.name for other in toy.algorithm.terms if other is not term)
        followers = {t.target for t in toy.algorithm.targets}
        assert changed(updater_of(toy), toy, Phase(updates=1, off=others), term.every) - followers == set(term.trains)


def test_a_frozen_network_stays_as_it_is(toy):
    for name in sorted({name for term in toy.algorithm.terms for name in term.trains}):
        assert name not in changed(updater_of(toy), toy, Phase(updates=1, frozen=(name,)), 2)


# --- reviews -----------------------------------------------------------------------------------------------------------------


def test_a_review_looks_and_changes_nothing_but_what_it_says(toy):
    batch = {name: column.clone() for name, column in toy.batch.items()}
    weights = {n: copy.deepcopy(m.state_dict()) for n, m in toy.networks.items()}
    for review in toy.algorithm.reviews:
        with torch.no_grad():
            reader = Recorded(toy.batch)
            found, again = (review.look(toy.networks, reader, toy.state, torch.Generator().manual_seed(0)) for _ in range(2))
        assert found == again
        assert reader.read <= toy.algorithm.needs
        assert set(found.takes) <= set(toy.algorithm.networks)
        assert set(found.takes.values()) <= set(toy.networks)
        assert json.loads(json.dumps(dict(found.state))) == found.state
    assert all(torch.equal(batch[name], column) for name, column in toy.batch.items())
    for name, network in toy.networks.items():
        assert all(torch.equal(weights[name][key], value) for key, value in network.state_dict().items())


# --- acting ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["explore", "greedy"])
def test_an_action_is_one_that_can_be_played_with_its_log_prob(toy, mode):
    algorithm, spaces = toy.algorithm, toy.spaces
    acting = {name: toy.networks[name] for name in algorithm.acts_with}
    obs_N = torch.randn(64, *spaces.obs, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        acted = algorithm.act(acting, obs_N, Ask(mode, 0, spaces), torch.Generator().manual_seed(0))
        again = algorithm.act(acting, obs_N, Ask(mode, 0, spaces), torch.Generator().manual_seed(1))
    action = acted["action"]
    assert acted["log_prob"].shape == (64,)
    assert action.shape == ((64,) if spaces.discrete else (64, spaces.actions))
    assert bool((action >= 0).all() & (action < spaces.actions).all()) if spaces.discrete else bool(action.isfinite().all())
    assert set(acted) - {"action", "log_prob"} <= set(TRANSITIONS)
    if mode == "greedy":
        assert torch.equal(action, again["action"]), "nobody is judged by chance"
    elif toy.config == type(toy.config)():
        assert not torch.equal(action, again["action"]), "exploring takes chance"
        assert bool(acted["log_prob"].isfinite().all())


# --- the file ----------------------------------------------------------------------------------------------------------------


def test_the_method_is_named_after_its_file(module):
    assert module.Config().build().name == module.__name__.rsplit(".", 1)[1]


def test_the_config_survives_json(config):
    dumped = json.loads(json.dumps(dataclasses.asdict(config)))
    hints = typing.get_type_hints(type(config))
    values = {
        name: tuple(value)
        if isinstance(value, list)
        else hints[name](value)
        if isinstance(hints[name], enum.EnumType)
        else value
        for name, value in dumped.items()
    }
    assert type(config)(**values) == config
    assert configs.dump(config)["_type"].endswith(":Config")


def test_an_option_that_does_not_exist_is_refused(module):
    for name, kind in typing.get_type_hints(module.Config).items():
        if typing.get_origin(kind) is typing.Literal:
            with pytest.raises(ConfigError, match=name):
                module.Config(**{name: "no such option"})


def test_docstring_has_a_summary_a_reference_and_the_rest_of_the_form(module):
    summary = module.__doc__.partition("\n")[0]
    assert summary.endswith(".")
    assert 20 <= len(summary) <= 125
    assert re.search(r"^Paper .*(\n {4,}.*)?\b(arXiv \d{4}\.\d{4,5}|(19|20)\d\d)\b", module.__doc__, re.MULTILINE)
    for heading in ("Estimator", "Equation", "Assumption", "Degenerate", "State"):
        assert re.search(rf"^{heading} +\S", module.__doc__, re.MULTILINE), f"{heading} is missing"


def test_every_config_field_says_what_it_is(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), f"{field.target.id} has no docstring"


def test_a_method_imports_only_words_maths_and_its_contract(module):
    allowed = re.compile(r"freerun\.(types|transitions|networks|errors|ops\.\w+|algorithms\.control_base)|torch(\.\w+)*")
    names = [found.target for found in source.imports(source.modules()[module.__name__])]
    assert [n for n in names if n.partition(".")[0] not in sys.stdlib_module_names and not allowed.fullmatch(n)] == []
