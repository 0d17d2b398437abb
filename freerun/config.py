"""Configs are nested frozen dataclasses made by Python functions (recipes). This file shows them, changes them and dumps them.

Only the standard library is imported, so that reading a config never costs an import of torch.
A value may be: a frozen dataclass, a str, int, float, bool, None, an Enum, or a tuple of these.
"""

import dataclasses
import difflib
import enum
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from freerun.errors import ConfigError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of `config` as dotted path to value, in the order of the fields."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, path = _read(config, field.name), prefix + field.name
        leaves |= flatten(value, path + ".") if _is_config(value) else {path: value}
    return leaves


def override(config: Any, changes: Mapping[str, str]) -> Any:
    """`config` with leaves replaced: dotted path to the value as text, read according to the field's type.

    A `None` section can be switched on only in a recipe, a section is switched off by the value `none`.
    Raises `ConfigError` for an unknown key (naming the nearest ones) and for text that is not of the field's type.
    """
    for path, text in changes.items():
        config = _override_one(config, path.split("."), text, path, config)
    return config


def dump(config: Any) -> Any:
    """JSON-able form: each dataclass becomes a mapping with its import path under `_type`, enums become their values."""
    if _is_config(config):
        kind = type(config)
        fields = {f.name: dump(_read(config, f.name)) for f in dataclasses.fields(config)}
        return {"_type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, tuple | list):
        return [dump(v) for v in config]
    if isinstance(config, Mapping):
        return {str(k): dump(v) for k, v in config.items()}
    if callable(config):
        return {"_function": f"{config.__module__}:{config.__qualname__}"}
    return config


def dumps(config: Any) -> str:
    """The resolved config as indented JSON text, for the run directory."""
    return json.dumps(dump(config), indent=2)


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths at which two dumps differ, with both values, for the message of a refused resume."""
    found = []
    for key in [*left, *(k for k in right if k not in left)]:
        a, b, path = left.get(key, "absent"), right.get(key, "absent"), prefix + key
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, path + ".")
        elif a != b:
            found.append(f"{path}: {a!r} -> {b!r}")
    return found


def nearest(word: str, known: typing.Iterable[str], count: int = 3) -> str:
    """`known` words close to `word` as a phrase, for error messages; all of them if nothing is close and they are few."""
    known = list(known)
    close = difflib.get_close_matches(word, known, count, cutoff=0.5)
    close = close or [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:count]
    return ", ".join(close or known[:12])


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _read(config: Any, name: str) -> Any:
    # Fields of slotted and ordinary dataclasses alike are read through the descriptor protocol.
    return object.__getattribute__(config, name)


def _override_one(config: Any, path: list[str], text: str, full: str, root: Any) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    if path[0] not in names:
        raise ConfigError(
            f"unknown config key '{full}'",
            given=f"--{full} {text}",
            expected=f"one of: {nearest(full, flatten(root))}",
            todo="correct the key; `freerun run RECIPE --help` lists all of them",
        )
    value = _read(config, path[0])
    if len(path) > 1 and not _is_config(value):
        raise ConfigError(
            f"config key '{full}' goes below '{path[0]}', which is not a section",
            given=f"{path[0]} = {value!r}",
            expected=f"one of: {nearest(full, flatten(root))}",
            todo="correct the key",
        )
    if len(path) > 1:
        changed = _override_one(value, path[1:], text, full, root)
    else:
        changed = _parse(text, typing.get_type_hints(type(config))[path[0]], full)
    return dataclasses.replace(config, **{path[0]: changed})


def _parse(text: str, kind: Any, path: str) -> Any:
    """Read `text` as a value of type `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    try:
        if origin in (typing.Union, types.UnionType):
            if type(None) in args and text.lower() in ("none", "null"):
                return None
            return _parse_first(text, [a for a in args if a is not type(None)], path)
        if origin is typing.Literal:
            if text in args:
                return text
            raise ValueError
        if origin is tuple:
            inner = args[0] if args else str
            return tuple(_parse(part.strip(), inner, path) for part in text.split(",") if part.strip())
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind(text)
        if kind is int:
            return int(text.replace("_", ""))
        if kind in (str, float):
            return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(
            f"config key '{path}' cannot hold this value",
            given=repr(text),
            expected=_describe(kind),
            todo="give a value of that type",
        ) from None
    raise ConfigError(
        f"config key '{path}' cannot be set from the command line",
        given=repr(text),
        expected=_describe(kind),
        todo="set it in a recipe function (docs/architecture.md, 'Recipes')",
    )


def _parse_first(text: str, kinds: list[Any], path: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return _parse(text, kind, path)
        except ConfigError:
            continue
    return _parse(text, kinds[-1], path)


def _describe(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of: " + ", ".join(str(m.value) for m in kind)
    if typing.get_origin(kind) is typing.Literal:
        return "one of: " + ", ".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)
