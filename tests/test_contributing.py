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
    """A copy of the project with the two files that the page asks for, and nothing else changed."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("freerun", "tools", "tests/contract"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "freerun/algorithms/language/sapo.py").write_text(block("SAPO: "), encoding="utf-8")
    (copy / "sapo_addition.py").write_text(block("SAPO on "), encoding="utf-8")
    return copy


def run_in(project: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
