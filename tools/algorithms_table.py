"""Write `docs/algorithms.md` from the algorithm files themselves: their docstrings, configs and records.

    .venv/bin/python tools/algorithms_table.py          write the page
    .venv/bin/python tools/algorithms_table.py --check  exit 1 if the page is not what would be written

A method is any module below `freerun/algorithms` that defines a `Config`; nothing is listed here.
"""

import argparse
import ast
import enum
import importlib
import pkgutil
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from freerun import algorithms
from freerun.ops.reduce import Reduction

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "algorithms.md"
HEADINGS = ("Paper", "Estimator", "Equation", "Assumption", "Degenerate", "Named", "State")
HEADER = """\
<!-- Written by tools/algorithms_table.py from freerun/algorithms; do not edit. -->
# Algorithms

An algorithm is one file: a frozen config, and a record of what gives credit, what is minimised and which columns of the batch
are read for it. A recipe imports the file and calls it. How to add one: [CONTRIBUTING.md](../CONTRIBUTING.md). The contract:
[`algorithms/base.py`](../freerun/algorithms/base.py). What every method promises is tested in
[`tests/contract`](../tests/contract), which finds the files by itself.

Symbols: `pi` is the policy being trained (current), `mu` the one that sampled the token (behaviour), `logp` is `log pi` of the
token, `A` the advantage, `r` in a credit rule the reward of a trajectory, `K` the size of a group; `sg` stops the gradient.
"""


def methods() -> dict[str, ModuleType]:
    """Every algorithm module by its dotted name below `freerun.algorithms`."""
    found = pkgutil.walk_packages(algorithms.__path__, algorithms.__name__ + ".")
    modules = {info.name: importlib.import_module(info.name) for info in found if not info.ispkg}
    return {
        name.removeprefix(algorithms.__name__ + "."): module for name, module in modules.items() if "Config" in vars(module)
    }


def sections(module: ModuleType) -> dict[str, str]:
    """The summary line of a docstring under `Summary`, and its labelled paragraphs; those of `Equation` keep their lines."""
    text = {"Summary": module.__doc__.partition("\n")[0]}
    pattern = rf"^({'|'.join(HEADINGS)}) +(.*(?:\n {{4,}}\S.*)*)"
    for heading, body in re.findall(pattern, module.__doc__, re.MULTILINE):
        lines = [line.strip() for line in body.splitlines()]
        text[heading] = ("\n" if heading == "Equation" else " ").join(lines)
    return text


def field_notes(module: ModuleType) -> dict[str, str]:
    """What the line under each field of the config says."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    notes, name = {}, ""
    for node in body:
        if isinstance(node, ast.AnnAssign):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            notes[name] = " ".join(str(node.value.value).split())
    return notes


def choices(kind: Any) -> str:
    """The values that a field may take, if its type names them."""
    values = get_args(kind) if get_origin(kind) is Literal else tuple(kind) if isinstance(kind, enum.EnumType) else ()
    return ", ".join(f"`{value}`" for value in values)


def cell(text: str) -> str:
    return text.replace("|", "&#124;")


def overview(found: dict[str, ModuleType]) -> str:
    rows = []
    for name, module in found.items():
        text, record = sections(module), module.Config().build()
        needs, short = ", ".join(f"`{column}`" for column in sorted(record.needs)), name.rpartition(".")[2]
        summary = text["Summary"].partition(": ")[2] or text["Summary"]
        rows.append(f"| [`{short}`](#{short}) | {cell(summary)} | {cell(text['Estimator'])} | {needs} |\n")
    return "| method | in one line | estimator | columns it reads by default |\n|---|---|---|---|\n" + "".join(rows)


def named(module: ModuleType) -> str:
    """The configs to which a module gives names, each by the fields in which it differs from the default."""
    defaults, rows = asdict(module.Config()), []
    for name, config in vars(module).get("NAMED", {}).items():
        changed = ", ".join(f"`{key}={value}`" for key, value in asdict(config).items() if value != defaults[key])
        rows.append(f"| {cell(name)} | {changed or 'the default'} |\n")
    return "\n| configuration | differs from the default in |\n|---|---|\n" + "".join(rows) if rows else ""


def details(name: str, module: ModuleType) -> str:
    text, hints, notes, defaults = sections(module), get_type_hints(module.Config), field_notes(module), asdict(module.Config())
    path, short = f"freerun/algorithms/{name.replace('.', '/')}.py", name.rpartition(".")[2]
    rows = [f"| `{key}` | `{value}` | {choices(hints[key])} | {cell(notes[key])} |\n" for key, value in defaults.items()]
    lists = "".join(f"- **{label}** {cell(text[label])}\n" for label in HEADINGS if label in text and label != "Equation")
    return (
        f"\n## {short}\n\n{text['Summary']} [`{path}`](../{path})\n\n```\n{text['Equation']}\n```\n\n{lists}\n"
        f"| config | default | values | meaning |\n|---|---|---|---|\n{''.join(rows)}{named(module)}"
    )


def reductions() -> str:
    tree = ast.parse((ROOT / "freerun" / "ops" / "reduce.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Reduction.__name__)
    notes = [node.value.value for node in body[1:] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    rows = [f"| `{reduction}` | {note} |\n" for reduction, note in zip(Reduction, notes, strict=True)]
    return (
        "\n## Reductions\n\nLosses are per token. The trainer divides once, by the counts of the whole step, so neither "
        "micro-batches nor ranks change a gradient.\n\n| reduction | meaning |\n|---|---|\n" + "".join(rows)
    )


def page() -> str:
    """The whole page as Markdown."""
    found = methods()
    return HEADER + "\n" + overview(found) + "".join(details(*item) for item in found.items()) + reductions()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            sys.stderr.write(f"{PAGE.name} is not current: run tools/algorithms_table.py\n")
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
