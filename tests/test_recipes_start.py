"""Every recipe that ships starts, in this process and in processes under Monarch: its stages and one step. Nothing here lists
recipes; a new one is tested from the moment it exists."""

import asyncio
import importlib.util

import pytest

from freerun import config as configs
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.models import lm
from freerun.recipes import base as recipes

FEWEST = {
    "steps": 1,
    "batch": 4,
    "epochs": 1,
    "groups": 2,
    "group_size": 2,
    "stream": 1,
    "experts": 2,
    "replay": 1,
    "eval_every": 0,
    "eval_prompts": 4,
    "final_eval_prompts": 4,
    "prompts": 32,
}
"""What a number of this name is lowered to, in whatever section it stands."""


def shortest(name: str, placement: str) -> recipes.RunConfig:
    config = recipes.load(name).recipe()
    numbers = {key: value for key, value in configs.flatten(config).items() if type(value) is int}
    least = {key: min(value, FEWEST[last]) for key, value in numbers.items() if (last := key.rpartition(".")[2]) in FEWEST}
    return configs.override(config, {**{key: str(value) for key, value in least.items()}, "placement.kind": placement})


def start(name: str, placement: str, directory, monkeypatch) -> None:
    """Data sets that the recipe makes on first use are made below `directory`; a model that was unpacked before stays where it
    is."""
    config = shortest(name, placement)
    if isinstance(config.model, lm.Config):
        missing = [p for p in (config.model.package, "reasoning_gym") if p and importlib.util.find_spec(p) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
    else:
        monkeypatch.setenv("FREERUN_CACHE", str(directory / "cache"))
    outcome = asyncio.run(asyncio.wait_for(launch(config, directory, Fanout([])), 280))
    assert outcome.finished
    assert outcome.step == 1
    assert [record.step for record in outcome.evaluations] == [0, 1]


def marked(name: str) -> object:
    large = isinstance(recipes.load(name).recipe().model, lm.Config)
    return pytest.param(name, marks=[pytest.mark.slow] if large else [])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [marked(name) for name in recipes.names()])
def test_every_recipe_starts_in_this_process(name, tmp_path, monkeypatch):
    start(name, "inline", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_starts_in_processes_of_its_own(name, tmp_path, monkeypatch):
    pytest.importorskip("monarch")
    start(name, "monarch", tmp_path, monkeypatch)
