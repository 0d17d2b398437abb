"""Every recipe that ships starts, in this process and in processes under Monarch: its stages and one step. Nothing here lists
recipes; a new one is tested from the moment it exists."""

import asyncio
import importlib.util
from dataclasses import replace

import pytest
import torch

from freerun import config as configs
from freerun.datasets.base import Episodes
from freerun.datasets.files import write_npz
from freerun.datasets.grades import Grade
from freerun.launch import launch
from freerun.launch_control import launch_control
from freerun.metrics import Fanout
from freerun.models import lm
from freerun.recipes import base as recipes
from freerun.recipes.control_base import ControlRun
from freerun.staging import Outcome
from freerun.store.phases import Phase
from freerun.trainer.control_config import DatasetConfig

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


def shortest_control(config: ControlRun, placement: str) -> ControlRun:
    """Each phase of the recipe, but of a few chunks of two steps, or of two updates."""
    rows = 2 * config.actor.envs

    def short(phase: Phase) -> Phase:
        if not phase.env_steps:
            return replace(phase, updates=2)
        return replace(phase, env_steps=3 * rows, start=rows if phase.start else 0, random=min(phase.random, rows))

    control = replace(config.control, phases=tuple(map(short, config.control.phases)), chunk=2, evaluations=0)
    return replace(
        config,
        control=replace(control, final_eval_episodes=1),
        actor=replace(config.actor, picture_frames=2),
        trainer=replace(config.trainer, batch=min(config.trainer.batch, 8)),
        placement=replace(config.placement, kind=placement),
    )


def write_data(config: ControlRun) -> None:
    """Self-made data sets that the recipe reads, as three steps of nothing."""
    for source in config.sources:
        if isinstance(source, DatasetConfig) and isinstance(source.data, Grade):
            env = config.env.build()
            obs_R = torch.arange(4.0)[:, None].expand(4, *env.spaces.obs)
            ended_R = torch.tensor([False, False, True])
            columns = {
                "obs": obs_R[:3],
                "next_obs": obs_R[1:],
                "action": torch.zeros(3, dtype=torch.int64) if env.spaces.discrete else torch.zeros(3, env.spaces.actions),
                "reward": torch.arange(3.0),
                "terminated": ~ended_R & ended_R,
                "truncated": ended_R,
                "episode": torch.zeros(3, dtype=torch.int64),
                "step": torch.arange(3, dtype=torch.int32),
            }
            write_npz(source.data.path, Episodes(name="nothing", columns=columns, about={"scores": [0.0, 1.0]}))
            env.close()


def start_control(recipe: ControlRun, placement: str, directory, monkeypatch) -> None:
    monkeypatch.setenv("FREERUN_CACHE", str(directory / "cache"))
    config = shortest_control(recipe, placement)
    write_data(config)
    outcome = asyncio.run(asyncio.wait_for(launch_control(config, directory, Fanout([])), 280))
    assert outcome.step == outcome.total_steps > 0
    check(outcome)


def start(name: str, placement: str, directory, monkeypatch) -> None:
    """Data sets that the recipe makes on first use are made below `directory`; a model that was unpacked before stays where it
    is."""
    recipe = recipes.load(name).recipe()
    if isinstance(recipe, ControlRun):
        pytest.importorskip("gymnasium")
        start_control(recipe, placement, directory, monkeypatch)
        return
    config = shortest(name, placement)
    if isinstance(config.model, lm.Config):
        missing = [p for p in (config.model.package, "reasoning_gym") if p and importlib.util.find_spec(p) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
    else:
        monkeypatch.setenv("FREERUN_CACHE", str(directory / "cache"))
    outcome = asyncio.run(asyncio.wait_for(launch(config, directory, Fanout([])), 280))
    assert outcome.step == 1
    check(outcome)


def check(outcome: Outcome) -> None:
    assert outcome.finished
    assert [record.step for record in outcome.evaluations] == [0, outcome.step]


def marked(name: str) -> object:
    recipe = recipes.load(name).recipe()
    large = not isinstance(recipe, ControlRun) and isinstance(recipe.model, lm.Config)
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
