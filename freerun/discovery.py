"""Finds what a user may name: modules of a package that define a certain function, or a Python file that does. The folder is
the list; nothing is registered, and nothing is imported to list it."""

import importlib
import importlib.machinery
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

from freerun.config import nearest
from freerun.errors import ConfigError


def names(package: ModuleType, function: str) -> list[str]:
    """Names of the modules in `package` that define `function`, sorted, with dashes for underscores."""
    folder = package.__path__[0]
    sources = {m.name: Path(folder, f"{m.name}.py") for m in pkgutil.iter_modules([folder]) if not m.ispkg}
    pattern = re.compile(rf"^def {function}\(", re.MULTILINE)
    return sorted(name.replace("_", "-") for name, path in sources.items() if pattern.search(path.read_text(encoding="utf-8")))


def load(package: ModuleType, function: str, name: str, *, listing: str, example: str) -> ModuleType:
    """The module of that name, or in the file `name`, if it ends in `.py`. `listing` is the command that lists the names,
    `example` a file that shows how one is written. Raises `ConfigError`."""
    if name.endswith(".py"):
        module = from_file(Path(name), function)
    elif name in (known := names(package, function)):
        module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    else:
        raise ConfigError(
            f"unknown {function} '{name}'",
            given=name,
            expected=f"one of: {nearest(name, known)}",
            todo=f"`{listing}` shows all; a path to a .py file works too",
        )
    if function not in vars(module):
        raise ConfigError(
            f"'{name}' is not a {function}",
            given=f"module {module.__name__}",
            expected=f"a function {function}()",
            todo=f"define it, see {example}",
        )
    return module


def from_file(path: Path, function: str) -> ModuleType:
    """The module in a file of the user's. Raises `ConfigError` if there is no such file."""
    if not path.is_file():
        raise ConfigError(
            f"{function} file not found",
            given=path,
            expected=f"a Python file with a function {function}()",
            todo="check the path",
        )
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=loader)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    # Executors in other processes import the file's own classes by this name.
    sys.modules[path.stem] = module
    loader.exec_module(module)
    return module
