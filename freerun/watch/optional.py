"""Packages that only one file needs, with an error that says how to install them."""

import importlib
from types import ModuleType

from freerun.errors import ConfigError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`. Raises `ConfigError` naming the `extra` to install if it, or something it needs, is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the sink '{extra}' needs a package that is not installed",
            given=str(error),
            expected=f"the extra '{extra}'",
            todo=f"pip install 'freerun[{extra}]', or leave the sink out",
        ) from error
