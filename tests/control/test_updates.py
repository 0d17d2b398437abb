"""The update: Adam as PyTorch has it, networks that share a step, and an optimiser's memory that survives a checkpoint."""

import copy

import pytest
import torch
from torch import Generator

from freerun.algorithms.control_base import ControlAlgorithm, Loss, Networks, State, Target, Term, act_by_sampling
from freerun.networks import Body, Ensemble, Policy
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig
from freerun.trainer.control_update import Updater
from freerun.trainer.sources import Batches
from freerun.transitions import Spaces, transitions
from freerun.types import Batch

SPACES, PHASE = Spaces(obs=(3,), actions=2, discrete=False), Phase(updates=1)
ROWS = transitions({"obs": torch.randn(7, 3, generator=torch.Generator().manual_seed(0))})
RATES = {"actor": 0.1, "value": 0.01}


def loss(networks: Networks, batch: Batch, state: State, generator: Generator) -> Loss:
    value_MB, mode_BA = networks["value"](batch["obs"]), networks["actor"](batch["obs"]).mode
    return Loss((value_MB - mode_BA.sum(-1)).square().sum(0) + mode_BA.square().sum(-1))


def updater(lr: float | dict[str, float]) -> Updater:
    body = Body(hidden=(4,))
    algorithm = ControlAlgorithm(
        name="both",
        networks={"actor": Policy(body=body), "value": Ensemble(reads=("obs",), members=2, body=body)},
        terms=(Term(name="both", loss=loss, trains=("actor", "value"), lr=lr),),
        act=act_by_sampling("actor"),
        acts_with=("actor",),
        needs=frozenset({"obs"}),
        targets=(Target(online="value", target="slow", rate=0.25),),
    )
    return Updater(algorithm, SPACES, ControlTrainerConfig(weight_decay=0.1))


def updates(of: Updater, num: int) -> None:
    for _ in range(num):
        of.update(Batches({"all": ROWS}), {}, Generator(), PHASE, lr_share=1.0, report=False)


@pytest.mark.parametrize("lr", [0.1, RATES])
def test_steps_are_those_of_pytorchs_adam_and_targets_follow(lr) -> None:
    own = updater(lr)
    theirs = {name: copy.deepcopy(network) for name, network in own.networks.items()}
    groups = [
        {"params": list(theirs[name].parameters()), "lr": rate}
        for name, rate in (lr if isinstance(lr, dict) else dict.fromkeys(RATES, lr)).items()
    ]
    adam = torch.optim.AdamW(groups, weight_decay=0.1)
    for _ in range(3):
        updates(own, 1)
        adam.zero_grad()
        loss(theirs, ROWS, {}, Generator()).loss.mean().backward()
        adam.step()
        for slow, fast in zip(theirs["slow"].parameters(), theirs["value"].parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.25)
    for name, network in own.networks.items():
        for mine, other in zip(network.parameters(), theirs[name].parameters(), strict=True):
            torch.testing.assert_close(mine, other, msg=name)


def test_the_optimisers_memory_names_every_parameter_and_goes_on_where_it_was() -> None:
    first, again = updater(RATES), updater(RATES)
    updates(first, 2)
    kept = copy.deepcopy(first.state())
    names = [name for name, _ in first.networks["actor"].named_parameters()]
    assert set(kept["optimizers"]["actor"]) == {f"{name}/{kind}" for name in names for kind in ("first", "second", "step")}
    assert all(kept["optimizers"]["actor"][f"{name}/step"] == 2 for name in names)
    again.load(kept)
    updates(first, 2)
    updates(again, 2)
    for mine, other in zip(first.networks["value"].parameters(), again.networks["value"].parameters(), strict=True):
        assert torch.equal(mine, other)
