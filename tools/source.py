"""The package's source as data: modules, their imports, the functions they define. Read by the architecture tests.

Nothing is imported: everything comes from the syntax trees, so a module that does not import yet can be judged all the same.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "freerun"


@dataclass(frozen=True)
class Import:
    """One imported module. `target` is a module of ours where there is one (`from freerun.ops import kl` is `freerun.ops.kl`),
    else the dotted name as written. `lazy` is inside a function, `typing` below `if TYPE_CHECKING`."""

    target: str
    line: int
    lazy: bool
    typing: bool


@dataclass(frozen=True)
class Module:
    """One file. `name` is dotted (`freerun.ops.kl`), `path` relative to the package (`ops/kl.py`)."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The word after `freerun.`: `ops`, `types`, ...; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def num_written_lines(self) -> int:
        """Lines that are not blank."""
        return sum(bool(line.strip()) for line in self.text.splitlines())


@functools.cache
def modules() -> dict[str, Module]:
    """Every module of the package by dotted name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(ROOT).with_suffix("")
        name = ".".join(relative.parts).removesuffix(".__init__")
        text = file.read_text(encoding="utf-8")
        found[name] = Module(name, file.relative_to(PACKAGE).as_posix(), text, ast.parse(text, filename=str(file)))
    return found


@functools.cache
def imports(module: Module) -> tuple[Import, ...]:
    """Everything that `module` imports, wherever in the file."""
    return tuple(_imports(module.tree, module, lazy=False, typing=False))


def _imports(node: ast.AST, module: Module, *, lazy: bool, typing: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, lazy, typing)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.name if module.path.endswith("__init__.py") else module.name.rpartition(".")[0]
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
        for target in dict.fromkeys(f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names):
            yield Import(target, node.lineno, lazy, typing)
    else:
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, module, lazy=lazy, typing=typing)


def closure(name: str) -> set[str]:
    """The modules of ours that reading `name` leads to, itself included."""
    seen, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current in modules() and current not in seen:
            seen.add(current)
            queue += [found.target for found in imports(modules()[current])]
    return seen


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Qualified name and number of lines (decorators not counted) of every function and method, nested ones included."""
    yield from _functions(module.tree, "")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inner = f"{prefix}{child.name}" if named else prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, child.end_lineno - child.lineno + 1
        yield from _functions(child, inner + "." if named else prefix)
