"""Every guarantee names tests that exist, and what can be judged from the source is judged here."""

import ast
import re

from tools.source import ROOT, modules

PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.findall(r"^- (?:[\w ]+: )?`(tests/[\w/]+\.py)::(test_\w+)`$", PAGE, re.M)

ON_THE_WALL = {
    "environment.py": "says when a run began, to people",
    "cli.py": "names the directory of a run",
    "chaos/command.py": "names the directory of its runs",
}
"""Files that read the clock on the wall, each with the reason; none waits by it."""


def test_every_test_that_a_guarantee_names_exists() -> None:
    defined = {
        (path, node.name)
        for path in {path for path, _ in NAMED}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not set(NAMED) - defined


def test_every_guarantee_is_held_by_a_test_and_every_line_that_looks_like_one_is_read() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    guarantees = [section for section in sections if re.match(r"\d+\. ", section)]
    assert [section.split(".")[0] for section in guarantees] == [str(i) for i in range(1, 9)]
    assert all(re.search(r"^- `tests/[\w/]+\.py::test_\w+`$", section, re.M) for section in guarantees)
    assert len(NAMED) == PAGE.count("::test_")


def test_no_wait_depends_on_the_clock_of_the_wall() -> None:
    """It may jump: a run that was put to sleep, a clock that is set."""
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "time.localtime"}
    found = {
        module.path
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in wall
    }
    assert found == set(ON_THE_WALL)
