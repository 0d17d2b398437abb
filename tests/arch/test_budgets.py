"""Sizes and habits that stay as they are unless somebody decides otherwise, in a commit of its own and with a reason."""

import ast
import re
from collections.abc import Iterator

from tools.source import ROOT, closure, functions, modules

FILE_LINES = 400
FUNCTION_LINES = 80
CLOSURE_LINES = {"algorithms/language/": 800, "algorithms/control": 1350}
"""Lines, blank ones not counted, that somebody reads who follows every import of one algorithm file. A control method leads to
both contracts, and to what language has no use for: spaces, networks, distributions over actions, values. Its contract holds
what HNPG (steps along the natural gradient) and Uni-O4 (reviews between phases) asked of it."""

BY_NAME = {
    "chaos/traps.py": "functions that are to fail are replaced by name, in the processes of a run that is hurt on purpose",
    "placement/calls.py": "executors' methods are called by name; that is what Placement promises",
    "placement/inline.py": "the same",
    "placement/monarch.py": "the same",
    "placement/resident.py": "the same",
}
"""Files that may look attributes up by name, each with the reason. Never on configs or batches: a field that may be missing is
a missing type."""

PROSE = [p for pattern in ("*.md", "docs/**/*.md", "tutorial/*.md") for p in sorted(ROOT.glob(pattern))]
PYTHON = [p for folder in ("freerun", "tests", "bench", "tools", "tutorial") for p in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_longer_than_one_sitting() -> None:
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON}
    assert not {path: count for path, count in lines.items() if count > FILE_LINES}


def test_no_function_is_longer_than_two_screens() -> None:
    lines = {f"{m.path}: {name}": count for m in modules().values() for name, count in functions(m)}
    assert not {name: count for name, count in lines.items() if count > FUNCTION_LINES}


def test_an_algorithm_can_be_read_with_all_it_imports() -> None:
    lines = {
        m.path: sum(modules()[name].num_written_lines for name in closure(m.name))
        for m in modules().values()
        if m.path.startswith("algorithms/")
    }
    budgets = {path: next((n for start, n in CLOSURE_LINES.items() if path.startswith(start)), 800) for path in lines}
    assert not {path: count for path, count in lines.items() if count > budgets[path]}


def test_no_exception_is_swallowed() -> None:
    assert not [where for where, n in nodes(ast.ExceptHandler) if swallows(n)]


def swallows(handler: ast.ExceptHandler) -> bool:
    """A broad handler that neither raises nor hands the exception to whoever awaits it."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
    passed_on = any(
        isinstance(n, ast.Raise)
        or (isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "set_exception")
        for statement in handler.body
        for n in ast.walk(statement)
    )
    return broad and not passed_on


def test_attributes_are_not_looked_up_by_name() -> None:
    found = calls({"getattr", "hasattr", "setattr", "delattr"})
    assert not [where for where in found if where.split(":")[0] not in BY_NAME]
    assert {where.split(":")[0] for where in found} >= set(BY_NAME) & {m.path for m in modules().values()}, "no longer needed"


def test_library_code_does_not_print() -> None:
    assert not calls({"print", "breakpoint"})


def calls(names: set[str]) -> list[str]:
    return [where for where, n in nodes(ast.Call) if isinstance(n.func, ast.Name) and n.func.id in names]


def nodes(kind: type) -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of a kind, with its place and first line."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, kind):
                yield f"{module.path}:{node.lineno}: {ast.unparse(node).splitlines()[0]}", node


def test_importing_a_module_does_no_work() -> None:
    allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    assert not [
        f"{module.path}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for module in modules().values()
        for node in module.tree.body
        if not isinstance(node, allowed) and not is_string(node) and not is_guard(node) and not is_optional_import(node)
    ]


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ("TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test))


def is_optional_import(node: ast.stmt) -> bool:
    """Imports whose absence is reported as an error that says what to install."""
    return (
        isinstance(node, ast.Try)
        and all(isinstance(n, ast.Import | ast.ImportFrom) for n in node.body)
        and all(isinstance(h.body[-1], ast.Raise) for h in node.handlers)
        and not (node.orelse or node.finalbody)
    )


def test_every_module_with_code_says_what_it_is_for() -> None:
    assert not [m.path for m in modules().values() if m.text.strip() and not ast.get_docstring(m.tree)]


def test_nothing_is_left_for_later_in_a_comment() -> None:
    later = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*PYTHON, *PROSE]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if later.search(line)
    ]
    assert not found
