"""Takes an assert apart: what has to be asked of the program under test, and the condition on the answers.

`assert math.isclose(area(2), 4 * math.pi)` asks for the value of `area(2)`; the condition is `math.isclose(_0, 4 * math.pi)`,
which can be judged where the program is not. Whether a name is the program's is decided from the tests alone: builtins, what
the setup binds, and modules of the standard library are the tests' own. If the program had a say in it, it could take over
`isinstance`.
"""

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """One assert. `calls` maps names that stand in `condition` to expressions for the program; `modules` are named in it."""

    condition: str
    calls: dict[str, str]
    modules: tuple[str, ...]


def take_apart(statements: Sequence[str], setup: str, function: str | None) -> tuple[Parts, ...]:
    """`function` is the program's even if a builtin or a module has that name.

    Raises `SyntaxError` for what is no Python, and `ValueError` for a statement that is no assert, asks nothing of the program,
    asks it inside a loop of its own, or leaves open which of its names are the program's. A name that is not called would be
    such: an expected value that the setup forgot, say, and that the program could then choose.
    """
    bound = set(_bound(ast.parse(setup)))
    if "*" in bound:
        raise ValueError("the setup imports *, so that nobody can tell which names are the program's")
    own = (set(dir(builtins)) | bound) - {function}
    return tuple(_parts(statement, own, function) for statement in statements)


def _parts(statement: str, own: set[str], function: str | None) -> Parts:
    body = ast.parse(statement.strip()).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise ValueError(f"{statement!r:.200} is not one assert")
    splitter = _Splitter(own, function, body[0].test)
    condition = ast.unparse(splitter.visit(body[0].test))
    if not splitter.calls:
        raise ValueError(f"{statement!r:.200} asks nothing of the program")
    return Parts(condition, splitter.calls, tuple(sorted(splitter.modules)))


class _Splitter(ast.NodeTransformer):
    """Puts names in the place of the largest expressions that begin with a name of the program."""

    def __init__(self, own: set[str], function: str | None, whole: ast.expr) -> None:
        self.own, self.function, self.local = own, function, list(_bound(whole))
        self.modules = {
            node.value.id
            for node in ast.walk(whole)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and self._is_module(node.value.id)
        }
        self.prefix = "_" * (1 + max((len(n.id) - len(n.id.lstrip("_")) for n in _names(whole)), default=0))
        self.calls: dict[str, str] = {}

    def _is_module(self, name: str) -> bool:
        """`math.pi` is about the module, where `select(1)` is about a function of the program."""
        return name in sys.stdlib_module_names and name not in self.own and name != self.function

    def _is_programs(self, name: str) -> bool:
        return name not in self.own and name not in self.local and name not in self.modules

    def visit(self, node: ast.AST) -> ast.AST:
        root = _root(node) if isinstance(node, ast.expr) else None
        if root is None or not self._is_programs(root.id):
            return self.generic_visit(node)
        source, inner = ast.unparse(node), list(_bound(node))
        if not any(isinstance(each, ast.Call) for each in ast.walk(node)):
            raise ValueError(f"{source!r:.200} is neither a call of the program nor a name that the setup binds")
        used = {name.id for name in _names(node)}
        looped = [name for name in used if self.local.count(name) > inner.count(name)]
        if looped:
            raise ValueError(f"{source!r:.200} depends on {looped}, of a loop in the assert: write the cases out")
        others = sorted(name for name in used if self._is_programs(name) and name != root.id)
        if others and root.id != self.function:
            raise ValueError(
                f"in {source!r:.200} either '{root.id}' or {others} may be what is tested: name the function, or import the "
                "tests' own names in the setup"
            )
        name = f"{self.prefix}{len(self.calls)}"
        self.calls[name] = source
        return ast.Name(name, ast.Load())


def _root(node: ast.AST) -> ast.Name | None:
    """The name that a chain of calls, attributes and subscripts begins with."""
    while True:
        match node:
            case ast.Name():
                return node
            case ast.Call(func=inner) | ast.Attribute(value=inner) | ast.Subscript(value=inner):
                node = inner
            case _:
                return None


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Name))


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that are given a meaning somewhere inside."""
    for each in ast.walk(node):
        match each:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name.partition(".")[0]
