"""Docs describe what is there: generated pages are current, and every command that a page shows exists."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freerun import cli, config
from freerun.recipes import base as recipes
from tools.source import ROOT

PAGES = [
    path for pattern in ("*.md", "docs/**/*.md", "tutorial/**/*.md", "bench/**/*.md") for path in sorted(ROOT.glob(pattern))
]
GENERATORS = sorted((ROOT / "tools").glob("*_table.py"))
BENCHES = sorted((ROOT / "bench").glob("*.py"))


def commands() -> Iterator[tuple[str, list[str]]]:
    """(place, words) of every command line in a shell block of a page; a prompt sign, a comment, variables in front and what
    stands in square brackets go."""
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(re.sub(r"\[[^]]*\]", "", line.removeprefix("$ ")), comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield f"{page.relative_to(ROOT)}: {line.strip()}", words


def problem(words: list[str]) -> str | None:
    """What is wrong with a command shown to a reader, or None. Programs that are not ours are taken as they are."""
    program, *arguments = words
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        missing = [a for a in arguments if "=" not in a and not a.startswith("-") and a not in targets]
        return f"no make target {missing}" if missing else None
    if Path(program).name in ("python", "python3"):
        scripts = [a for a in arguments[:1] if a.endswith(".py")]
        return next((f"no file {script}" for script in scripts if not (ROOT / script).is_file()), None)
    if Path(program).name == "freerun":
        return freerun_problem(arguments)
    return None


def freerun_problem(arguments: list[str]) -> str | None:
    """Parses the command as the program does; a recipe in capitals stands for any."""
    known, rest = cli._parser().parse_known_args(arguments)
    if arguments[0] == "run" and known.recipe and not known.recipe.endswith(".py") and not known.recipe.isupper():
        config.override(recipes.load(known.recipe).recipe(), config.read_overrides(rest))
        return None
    return f"unknown arguments {rest}" if rest and arguments[0] != "run" else None


@pytest.mark.parametrize(("place", "words"), [pytest.param(place, words, id=place) for place, words in commands()])
def test_every_command_in_the_docs_exists(place: str, words: list[str]) -> None:
    assert problem(words) is None


def test_every_relative_link_in_the_docs_leads_somewhere() -> None:
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8")))
        if "://" not in link and not link.startswith("mailto:")
    ]
    assert not [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("script", GENERATORS, ids=lambda path: path.name)
def test_generated_pages_are_current(script: Path, monkeypatch, capsys) -> None:
    assert exit_code(script, "--check", monkeypatch) == 0, capsys.readouterr().err + "\nrun `make docs`"


@pytest.mark.parametrize("script", BENCHES, ids=lambda path: path.name)
def test_every_benchmark_explains_itself(script: Path, monkeypatch, capsys) -> None:
    assert exit_code(script, "--help", monkeypatch) == 0
    assert len(capsys.readouterr().out) > 200


def exit_code(script: Path, option: str, monkeypatch) -> int:
    """Run a script in this process, which has already paid for importing torch."""
    monkeypatch.setattr(sys, "argv", [str(script), option])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code or 0


def test_the_demo_is_a_recipe() -> None:
    demo = re.search(r"^DEMO \?= (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert demo.group(1) in recipes.names()


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()
    assert sorted(phony) == sorted(re.findall(r"^([a-z-]+):.*## ", text, re.M))
