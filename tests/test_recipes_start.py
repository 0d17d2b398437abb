"""Every recipe that ships starts: one small step of it, by the launcher of the command line. Nothing here lists recipes."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from freerun import config as configs
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.models import tiny_lm, tiny_moe
from freerun.recipes import base as recipes
from freerun.recipes.base import PlacementConfig, RunConfig
from freerun.rundir import RunDirectory, read_log

EVERY = {name: recipes.load(name).recipe() for name in recipes.names()}
QUICK = [name for name, config in EVERY.items() if isinstance(config.model, (tiny_lm.Config, tiny_moe.Config))]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in EVERY if name not in QUICK]


def shortened(config: RunConfig, kind: str) -> RunConfig:
    """One step on a few groups, after one step of each earlier stage; everything else as the recipe says."""
    control = config.control
    few = replace(
        control,
        steps=1,
        groups=2,
        group_size=min(2, control.group_size),
        stream=1,
        experts=min(2, control.experts),
        replay=min(1, control.replay),
        eval_every=0,
        eval_prompts=2,
        final_eval_prompts=2,
        checkpoint_every=0,
    )
    warm = config.warm_start and replace(config.warm_start, steps=1, batch=4)
    return replace(config, control=few, warm_start=warm, placement=PlacementConfig(kind=kind, schedule="serial"))


def starts(name: str, kind: str, directory: Path) -> None:
    config = shortened(EVERY[name], kind)
    files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([files])
    try:
        outcome = asyncio.run(asyncio.wait_for(launch(config, directory, sinks), 100))
    finally:
        sinks.close()
    assert outcome.finished
    (row,) = read_log(directory / "metrics.jsonl").rows
    assert row["version"] == 1
    assert row["metrics"]["tokens/trained"] > 0


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_every_recipe_starts_in_one_process(name: str, tmp_path: Path) -> None:
    starts(name, "inline", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_starts_with_a_process_for_each_executor(name: str, tmp_path: Path) -> None:
    starts(name, "monarch", tmp_path / "run")
