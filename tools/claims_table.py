"""Write `docs/claims.md`, and the table of methods in `README.md`, from the results in `docs/claims`.

    .venv/bin/python tools/claims_table.py          write both
    .venv/bin/python tools/claims_table.py --check  exit 1 if either is not what would be written

A method is any module below `freerun/algorithms` that defines a `Config`; a result is what `freerun claims` wrote.
"""

import argparse
import importlib
import json
import pkgutil
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from freerun import algorithms
from freerun.claims import base

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, README = ROOT / "docs" / "claims", ROOT / "docs" / "claims.md", ROOT / "README.md"
BEGIN, END = "<!-- methods: written by tools/claims_table.py -->\n", "<!-- end of methods -->\n"
HEADER = """\
<!-- Written by tools/claims_table.py from docs/claims; do not edit. -->
# Claims

What papers say of their methods, tested in small experiments that can come out against them. Each claim is a file in
[`freerun/claims`](../freerun/claims) that states what is run (arms), what is compared and by how much an arm has to be better
(margin); each result is a file in [`docs/claims`](claims). Nobody decides a verdict by hand:

- Arms of one seed share start, prompts and random numbers. What counts is the difference of two arms, seed by seed.
- Its 95% interval is Student's t over seeds. Above the margin: **holds**. Not above: **does not hold**. Around it: **unclear**.
- A claim with several comparisons holds if all of them do. Intervals are not widened for their number.
- Tables (a bandit and a sequence task) have closed forms and plain gradient descent. The tiny transformer is 0.1M parameters in
  the real engine. Neither says how large an effect is at another scale; they say whether the mechanism is there.
- Methods are compared at one learning rate, tuned for the baseline, unless a claim says otherwise.

`make claims` runs all of them, `make claims-quick` the quick ones, and fails if a verdict is not the one that is written here.
"""


def results() -> dict[str, dict[str, Any]]:
    """Results by the name of their claim."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def methods() -> dict[str, ModuleType]:
    """Every algorithm module by its dotted name, those of language first."""
    found = sorted(
        pkgutil.walk_packages(algorithms.__path__, algorithms.__name__ + "."), key=lambda info: ".control" in info.name
    )
    modules = {info.name: importlib.import_module(info.name) for info in found if not info.ispkg}
    return {name: module for name, module in modules.items() if "Config" in vars(module)}


def page(found: dict[str, dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    rows = [
        f"| [{name}](#{name}) | {short(one)} | **{one['verdict']}** | {one['seeds']} | {one['minutes']:g} |\n"
        for name, one in found.items()
    ]
    counts = Counter(one["verdict"] for one in found.values())
    summary = (
        f"\n{len(found)} claims: "
        + ", ".join(f"{counts[word]} {word}" for word in ("holds", "does not hold", "unclear"))
        + ".\n"
    )
    overview = summary + "\n| claim | method | verdict | seeds | minutes |\n|---|---|---|---:|---:|\n" + "".join(rows)
    return HEADER + overview + "".join(section(name, one) for name, one in found.items())


def section(name: str, one: dict[str, Any]) -> str:
    """One claim: what was tested, what came out, and how to do it again."""
    better = "" if one["better"] == "higher" else ", lower is better"
    arms = "".join(
        f"| {cell(arm)} | {ran['mean']:.3f} | {ran['low']:.3f} to {ran['high']:.3f} | {by_seed(ran, one['metric'])} |\n"
        for arm, ran in one["arms"].items()
    )
    compared = "".join(
        f"| {cell(statement(comparison))} | {comparison['interval']['mean']:+.3f} | "
        f"{comparison['interval']['low']:+.3f} to {comparison['interval']['high']:+.3f} | {comparison['verdict']} |\n"
        for comparison in one["compared"]
    )
    tried = f"\n{words}\n" if (words := base.load(name).claim().tried) else ""
    versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
    return (
        f"\n## {name}\n\n{one['sentence']}\n\n**{one['verdict'][0].upper()}{one['verdict'][1:]}.** Method "
        f"[`{short(one)}`](algorithms.md#{short(one)}). {one['paper']}.\n\n"
        f"| arm | {one['metric']}{better} | 95% interval | by seed |\n|---|---:|---:|---:|\n{arms}\n"
        f"| expected | difference | 95% interval | |\n|---|---:|---:|---|\n{compared}{tried}\n"
        f"`{one['command']}`: {one['minutes']:g} minutes of one core, {one['date']}, commit {one['commit'][:12]}, {versions}, "
        f"{one['hardware']}.\n"
    )


def by_seed(ran: dict[str, Any], metric: str) -> str:
    """The metric of each run."""
    return ", ".join(f"{numbers[metric]:.3f}" for numbers in ran["runs"].values())


def statement(comparison: dict[str, Any]) -> str:
    """An expectation in words."""
    one = comparison["expectation"]
    by = f" by more than {one['margin']:g}" if one["margin"] else ""
    return f"{one['better']} > {one['worse']}{by}" + (f" ({one['metric']})" if one["metric"] else "")


def short(one: dict[str, Any]) -> str:
    """The name of a result's method."""
    return one["method"].rpartition(".")[2]


def cell(text: str) -> str:
    return text.replace("|", "&#124;")


def table(found: dict[str, dict[str, Any]]) -> str:
    """The methods, one line each, with what became of the claims about them."""
    rows = []
    for name, module in methods().items():
        method = name.rpartition(".")[2]
        summary = module.__doc__.partition("\n")[0]
        paper = re.search(r"\b(arXiv \d{4}\.\d{4,5})|(\w+ (19|20)\d\d)\b", module.__doc__)
        tested = [
            f"[{claim}](docs/claims.md#{claim}): {one['verdict']}" for claim, one in found.items() if one["method"] == name
        ]
        rows.append(
            f"| [`{method}`](docs/algorithms.md#{method}) | {cell(summary)} | {paper.group(0) if paper else ''} | "
            f"{'<br>'.join(tested)} |\n"
        )
    return "\n| method | in one line | first of its papers | claims |\n|---|---|---|---|\n" + "".join(rows) + "\n"


def readme(found: dict[str, dict[str, Any]]) -> str:
    """The README with its table replaced."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(found) + END + rest.split(END)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    found = results()
    wanted = {PAGE: page(found), README: readme(found)}
    if parser.parse_args().check:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            sys.stderr.write(f"{path.name} is not current: run tools/claims_table.py\n")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
