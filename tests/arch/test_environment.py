"""What is locked, what is declared and what is used agree."""

import re
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import lock
from tools.source import ROOT, imports, modules

DISTRIBUTIONS = {"monarch": "torchmonarch", "jinja2": "transformers", "triton": "torch"}
"""Import names that differ from the name of the distribution, or, for the last two, of the one that brings it."""


def test_the_lock_satisfies_what_the_project_declares() -> None:
    assert not lock.problems()


def test_every_line_of_the_lock_is_an_exact_version() -> None:
    lines = [*lock.LOCK.read_text().splitlines(), *lock.TORCH_LOCK.read_text().splitlines()]
    assert not [line for line in lines if not re.fullmatch(r"#.*|[a-z0-9.-]+==[0-9][A-Za-z0-9.!+]*", line)]


def test_everything_that_the_package_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for name, extra in extras.items() if name != "dev" for line in extra]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    used = {i.target.split(".")[0] for module in modules().values() for i in imports(module)} - {"freerun"}
    used = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in used - sys.stdlib_module_names}
    assert used <= declared


def test_the_same_linter_runs_before_a_commit_and_in_the_checks() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "ruff check" in hooks and "ruff format --check" in hooks
    assert "rev:" not in hooks, "hooks run what the lock installed, so that versions cannot differ"
