"""The tutorial imports nothing of ours, so here its numbers are held against those of the package, and it is run."""

import ast
import asyncio
import importlib.util
import math
import pathlib
import random
import runpy
import sys

import pytest
import torch

from freerun.algorithms.language import aipo
from freerun.ops import advantages
from freerun.ops.reduce import count, element_weights, weighted_sum
from freerun.store.admission import Admission
from freerun.types import Batch

PATH = pathlib.Path(__file__).parent.parent / "tutorial" / "minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["minimal"] = module  # Where dataclasses look up their module.
    spec.loader.exec_module(module)
    yield module
    del sys.modules["minimal"]


def run(minimal, *options):
    return asyncio.run(minimal.learn(minimal.options([*options, "--every", "0"])))


def test_the_tutorial_imports_only_torch_and_the_standard_library():
    tree = ast.parse(PATH.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}
    assert len(PATH.read_text().splitlines()) <= 300


def test_advantages_are_those_of_the_package(minimal):
    reward_GK = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    package_GK = torch.stack([advantages.group_mean(reward_K) for reward_K in reward_GK])
    assert torch.allclose(minimal.advantages(reward_GK), package_GK, atol=1e-6)


@pytest.mark.parametrize("rho", [1.0, 4.0, math.inf])
def test_the_aipo_loss_and_its_gradient_are_those_of_the_package(minimal, rho):
    make = torch.Generator().manual_seed(0)
    behaviour_BT = -torch.rand(6, 4, generator=make)
    mask_BT = torch.rand(6, 4, generator=make) < 0.7
    advantage_BT = torch.randn(6, 1, generator=make).expand(6, 4)
    logp_BT = behaviour_BT + torch.randn(6, 4, generator=make)
    left_BT, right_BT = logp_BT.clone().requires_grad_(), logp_BT.clone().requires_grad_()

    left = minimal.aipo_loss(left_BT, behaviour_BT, advantage_BT, mask_BT, rho) / mask_BT.sum()
    (term,) = aipo.Config(rho=rho).build().terms
    batch = Batch({"mask": mask_BT, "advantage": advantage_BT, "logp_behaviour": behaviour_BT})
    out = term.loss({"logp": right_BT}, batch, {})
    right = weighted_sum(out.loss, element_weights(mask_BT, term.reduction)) / count(mask_BT, term.reduction)
    left.backward()
    right.backward()
    assert left.item() == pytest.approx(right.item(), rel=1e-5)
    assert torch.allclose(left_BT.grad, right_BT.grad, atol=1e-7)
    assert out.metrics["ratio/clipped"].value > 0 or rho == math.inf


@pytest.mark.parametrize(("max_lag", "batch"), [(0, 1), (0, 3), (1, 4), (3, 2)])
def test_slots_admit_when_the_package_admits(minimal, max_lag, batch):
    slots, admission = minimal.Slots(max_lag, batch), Admission(batch=batch, max_lag=max_lag, window=1)
    assert slots.capacity == admission.capacity
    rng, running, version = random.Random(0), [], 0
    for _ in range(300):
        event = rng.choice(["admit", "finish", "train"])
        if event == "admit":
            item = admission.admit("prompt")
            assert slots.admit() == item
            if item is not None:
                admission.begin(item, version)
                running.append((item, version))
        elif event == "finish" and running:
            item, born = running.pop(rng.randrange(len(running)))
            admission.finish(item, born)
        elif event == "train" and admission.ready() == batch:
            # The tutorial knows which groups come next by counting.
            assert admission.take(batch, version) == list(range(version * batch, (version + 1) * batch))
            version += 1
            admission.trained(range((version - 1) * batch, version * batch), version)
            admission.published(version)
            slots.free(batch)
    assert version > 5


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_the_largest_lag_is_the_bound_of_the_package(minimal, max_lag):
    _, _, result = run(minimal, "--steps", "8", "--max-lag", str(max_lag), "--groups-per-step", "4", "--group-size", "2")
    assert max(result.lags) == Admission(batch=4, max_lag=max_lag, window=1).lag_bound == max_lag
    assert (result.mixed > 0) == (max_lag > 0)


def test_behaviour_log_probs_are_those_the_trainer_finds_with_the_same_weights(minimal):
    torch.manual_seed(0)
    policy = minimal.Policy()
    responses = [minimal.Response(minimal.encode(word + "=")) for word in ("abc", "fad", "hag", "bee")]
    while active := [r for r in responses if not r.finished]:
        minimal.decode(policy, 3, active)
    logp_BT, behaviour_BT, mask_BT = minimal.response_logp(policy, responses)
    assert torch.allclose(logp_BT[mask_BT], behaviour_BT[mask_BT], atol=1e-5)
    assert mask_BT.sum(-1).tolist() == [len(r.tokens) for r in responses]
    assert {version for r in responses for version in r.version} == {3}


def test_the_reward_is_the_share_of_right_tokens(minimal):
    assert minimal.reward("fad", minimal.encode("daf.")) == 1.0
    assert minimal.reward("fad", minimal.encode("dab.")) == 0.75
    assert minimal.reward("fad", minimal.encode("d.")) == 0.25
    assert minimal.reward("fad", minimal.encode("dafa")) == 0.75


def test_a_run_repeats_exactly(minimal):
    first, second = (run(minimal, "--steps", "3", "--groups-per-step", "2")[2] for _ in range(2))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.lags == second.lags


def test_a_failure_of_the_generator_ends_the_run(minimal, monkeypatch):
    monkeypatch.setattr(minimal, "encode", lambda text: [99])
    monkeypatch.setattr(minimal, "accuracy", lambda policy, words: 0.0)
    with pytest.raises(IndexError):
        run(minimal, "--steps", "2")


def test_the_script_prints_what_it_learned(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [str(PATH), "--steps", "2", "--every", "1", "--groups-per-step", "2"])
    runpy.run_path(str(PATH), run_name="__main__")
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[:2]] == [["step", "1"], ["step", "2"]]
    assert printed[2].startswith("held-out words spelt backwards: ")


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_it_learns_to_spell_backwards(minimal, seed):
    before, after, result = run(minimal, "--seed", seed)
    assert before <= 0.05
    assert after >= 0.9
    assert max(result.lags) == 2
