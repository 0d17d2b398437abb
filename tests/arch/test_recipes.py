"""Every recipe that ships builds, and what it says can be dumped, shown and overridden. Nothing here lists recipes."""

import json
import pkgutil
import re

import pytest

from freerun import config
from freerun.algorithms import language
from freerun.claims.run import results_directory
from freerun.claims.staleness import holds_to
from freerun.recipes import base as recipes
from freerun.recipes.control_base import ControlRun

NAMES = recipes.names()


def test_recipes_ship() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_a_complete_config(name: str) -> None:
    built = recipes.load(name).recipe()
    assert isinstance(built, recipes.RunConfig | ControlRun)
    assert built.algorithm.build().terms


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_dumped_and_each_time_is_the_same(name: str) -> None:
    text = config.dumps(recipes.load(name).recipe())
    assert json.loads(text)["_type"].endswith((":RunConfig", ":ControlRun"))
    assert text == config.dumps(recipes.load(name).recipe())


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_recipe_can_be_overridden_with_its_own_value(name: str) -> None:
    built = recipes.load(name).recipe()
    numbers = {key: str(value) for key, value in config.flatten(built).items() if type(value) in (int, float, bool)}
    assert config.override(built, numbers) == built


@pytest.mark.parametrize(("name", "text"), list(recipes.described()))
def test_every_recipe_says_in_a_line_what_it_shows(name: str, text: str) -> None:
    assert 20 < len(text) < 400


def test_no_recipe_asks_for_a_larger_lag_than_its_method_holds_to_in_the_study_of_staleness() -> None:
    study = json.loads((results_directory().parent / "staleness-study.json").read_text())
    asked = {name: built for name in NAMES if isinstance(built := recipes.load(name).recipe(), recipes.RunConfig)}
    seen = {name: (built.control.max_lag, type(built.algorithm).__module__.rpartition(".")[2]) for name, built in asked.items()}
    too_far = {
        name: (lag, method)
        for name, (lag, method) in seen.items()
        if method in study and lag > holds_to(study[method]["cells"])
    }
    assert not too_far, f"recipes beyond what docs/staleness-study.md found: {too_far}"


def test_every_language_method_has_a_recipe() -> None:
    used = re.findall(rf"{re.escape(language.__name__)}\.(\w+)", "".join(config.dumps(recipes.load(n).recipe()) for n in NAMES))
    assert {found.name for found in pkgutil.iter_modules(language.__path__)} == set(used)
