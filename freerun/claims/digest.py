"""A fingerprint of the code that a result follows from: a module and every module of ours that it imports, directly or not.

Comments and docstrings are left out, so correcting a sentence keeps a result that took an hour.
"""

import ast
import functools
import hashlib
from pathlib import Path

import torch

import freerun

ROOT = Path(freerun.__file__).resolve().parent


@functools.cache
def digest(file: Path) -> str:
    """Twelve hexadecimal digits for the code in `file`, all modules of ours that it leads to, and the version of torch."""
    seen: dict[Path, str] = {}
    queue = [file]
    while queue:
        path = queue.pop()
        if path not in seen:
            tree = bare(ast.parse(path.read_text(encoding="utf-8")))
            seen[path] = ast.unparse(tree)
            queue += [found for name in imported(tree) if (found := file_of(name)) is not None]
    code = "\n".join(f"{path.name}\n{text}" for path, text in sorted(seen.items()))
    return hashlib.sha256(f"{torch.__version__}\n{code}".encode()).hexdigest()[:12]


def file_of(name: str) -> Path | None:
    """The file of a module of ours, or None for any other module and for names that are no modules."""
    top, *parts = name.split(".")
    if top != ROOT.name:
        return None
    base = ROOT.joinpath(*parts)
    candidates = (base / "__init__.py", base.with_suffix(".py")) if parts else (base / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


def imported(tree: ast.AST) -> list[str]:
    """What the code imports, wherever in the file. `from a import b` may mean the module `a.b`, so both are listed."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, those of fields included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [child for child in node.body if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
    return tree
