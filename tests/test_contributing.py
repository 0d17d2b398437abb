"""The worked example of CONTRIBUTING.md is followed to the letter, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(beginning: str) -> str:
    """The Python block of the page whose docstring begins so."""
    (found,) = [text for text in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M) if text.startswith(f'"""{beginning}')]
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files that the page asks for, and nothing else changed."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("freerun", "tools", "tests/contract", "tests/control"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for helper in ("worlds.py", "fakes.py"):
        shutil.copy(ROOT / "tests" / helper, copy / "tests")
    (copy / "freerun/algorithms/language/sapo.py").write_text(block("SAPO: "), encoding="utf-8")
    (copy / "sapo_addition.py").write_text(block("SAPO on "), encoding="utf-8")
    (copy / "freerun/algorithms/control/awr.py").write_text(block("AWR: "), encoding="utf-8")
    (copy / "awr_pendulum.py").write_text(block("AWR on "), encoding="utf-8")
    return copy


def run_in(project: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IN_CONTROL = """
import pytest
import torch

from freerun.algorithms.control import awr, bc
from freerun.recipes import base as recipes
from freerun.trainer.control_config import DatasetConfig
from tools import algorithms_table


def test_awr_with_a_large_beta_is_behaviour_cloning(toys):
    toy = toys(awr.Config(beta=1e12), CONTINUOUS)
    out = toy.losses(toy.batch)["actor"][1]
    expected = -toy.networks["actor"](toy.batch["obs"]).log_prob(toy.batch["action"])
    assert torch.allclose(out.loss, expected)


def test_an_action_that_paid_the_log_of_two_more_counts_twice(toys):
    toy = toys(awr.Config(beta=1.0), CONTINUOUS)
    with torch.no_grad():
        value = toy.networks["value"](toy.batch["obs"])[0]
    returns = value + torch.tensor(2.0).log() * (torch.arange(len(value)) % 2)
    out = toy.losses(toy.batch.with_columns(mc_return=returns))["actor"][1]
    assert out.watch["weight"].tolist() == pytest.approx([1.0, 2.0] * (len(value) // 2), rel=1e-4)


def test_the_page_of_algorithms_has_awr():
    assert "| [`awr`](#awr) | imitation of recorded actions" in algorithms_table.page()


def test_the_recipe_of_awr_is_one():
    recipe = recipes.load("awr_pendulum.py").recipe()
    assert recipe.algorithm == awr.Config(lr=1e-3, beta=50.0)
    assert isinstance(recipe.sources[0], DatasetConfig)
"""

IN_THE_COPY = """
import torch

from freerun.algorithms.language import aipo, sapo
from freerun.recipes import base as recipes
from tools import algorithms_table


def test_sapo_has_the_gradient_of_aipo_where_the_page_says_so(toy, tools):
    pair = [sapo.Config(tau_positive=1e-5, tau_negative=1e-5, reduction="token_mean"), aipo.Config(rho=float("inf"))]
    left, right = (tools.step_gradient(config.build(), toy, toy.batch) for config in pair)
    assert torch.allclose(left, right, rtol=1e-3)


def test_the_page_of_algorithms_has_sapo():
    page = algorithms_table.page()
    assert "| [`sapo`](#sapo) | the importance-weighted policy gradient under a soft gate" in page
    assert "-4 / tau sigmoid(tau (u - 1)) A" in page


def test_the_recipe_of_sapo_is_one():
    assert recipes.load("sapo_addition.py").recipe().algorithm == sapo.Config(tau_negative=1.5)
"""


@pytest.mark.dist
def test_the_contract_the_page_and_the_recipes_find_the_new_method(project: Path) -> None:
    (project / "tests/contract/test_sapo.py").write_text(IN_THE_COPY, encoding="utf-8")
    printed = run_in(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-k", "sapo")
    assert int(re.search(r"(\d+) passed", printed).group(1)) > 70


@pytest.mark.dist
def test_the_contract_of_control_finds_the_new_method(project: Path) -> None:
    head = "from control.conftest import CONTINUOUS\n"
    (project / "tests/control/test_awr.py").write_text(head + IN_CONTROL, encoding="utf-8")
    printed = run_in(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/control", "-k", "awr")
    assert int(re.search(r"(\d+) passed", printed).group(1)) > 30


@pytest.mark.slow
@pytest.mark.dist
def test_the_new_recipe_trains(project: Path) -> None:
    small = {
        "placement.kind": "inline",
        "warm_start.steps": "1",
        "control.steps": "2",
        "control.groups": "2",
        "control.group_size": "2",
        "control.stream": "1",
        "control.eval_prompts": "4",
        "control.final_eval_prompts": "4",
        "algorithm.tau_negative": "2",
    }
    changes = [f"--{key}={value}" for key, value in small.items()]
    run_in(project, "-m", "freerun.cli", "run", "sapo_addition.py", *changes)
    (run,) = (project / "runs").iterdir()
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2
