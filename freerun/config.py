"""Configs are nested frozen dataclasses made by Python functions (recipes). This file shows them, changes them and dumps them.

Only the standard library is imported, so that reading a config never costs an import of torch.
A value may be: a frozen dataclass, a str, int, float, bool, None, an Enum, or a tuple of these.
"""

import contextlib
import dataclasses
import difflib
import enum
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
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
    """`config` with leaves replaced, all at once: dotted path to the value as text, read according to the field's type.

    A `None` section can be switched on only in a recipe, a section is switched off by the value `none`.
    Raises `ConfigError` for an unknown key (naming the nearest ones), for text that is not of the field's type, and for values
    that a section refuses.
    """
    return _override(config, [_Change(path.split("."), text, path) for path, text in changes.items()], config)


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


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """`--a.b value --c=value` as a mapping. Raises `ConfigError` for a word that is neither a key nor a value."""
    found: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (not equals and not words):
            raise ConfigError(
                "cannot read the overrides", given=word, expected="--dotted.key value", todo="give every key a value"
            )
        found[key.replace("-", "_")] = value if equals else words.pop(0)
    return found


def demand(config: Any, what: str, rules: Mapping[str, bool]) -> None:
    """For `__post_init__`: raises `ConfigError`, which begins with `what`, for a config that breaks one of `rules` (the rule in
    words, and whether it holds)."""
    for rule, holds in rules.items():
        if not holds:
            raise ConfigError(what, given=config, expected=rule, todo="correct the recipe, or the value on the command line")


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


class _Change(typing.NamedTuple):
    """What is left of a path below the section in hand, the text, and the whole path."""

    rest: list[str]
    text: str
    path: str

    def __str__(self) -> str:
        return f"--{self.path} {self.text}"


def _override(config: Any, changes: list[_Change], root: Any) -> Any:
    """`config`, which is a section of `root`, with `changes`. What a section refuses is said once all of it is known: two
    changes that only fit together come in any order."""
    hints, replaced = typing.get_type_hints(type(config)), dict[str, Any]()
    for change in changes:
        name = change.rest[0]
        if name not in [f.name for f in dataclasses.fields(config)]:
            raise ConfigError(
                f"unknown config key '{change.path}'",
                given=change,
                expected=f"one of: {nearest(change.path, flatten(root))}",
                todo="correct the key; `freerun run RECIPE --help` lists all of them",
            )
        value, whole = _read(config, name), [c for c in changes if c.rest == [name]]
        if len(change.rest) == 1:
            replaced[name] = _parse(change.text, hints[name], change.path, value)
        elif whole or not _is_config(value):
            raise ConfigError(
                f"config key '{change.path}' goes below '{name}', which is not a section",
                given=whole[0] if whole else f"{name} = {value!r}",
                expected=f"one of: {nearest(change.path, flatten(root))}",
                todo="correct the key",
            )
        elif name not in replaced:
            below = [_Change(c.rest[1:], c.text, c.path) for c in changes if c.rest[0] == name and len(c.rest) > 1]
            replaced[name] = _override(value, below, root)
    try:
        return dataclasses.replace(config, **replaced)
    except ConfigError as error:
        # Not the whole section, which may be long: what the user said, beside the rule that it breaks.
        raise ConfigError(error.what, given=", ".join(map(str, changes)), expected=error.expected, todo=error.todo) from None


def _parse(text: str, kind: Any, path: str, now: Any) -> Any:
    """Read `text` as a value of type `kind`, in place of the value `now`."""
    if not _settable(kind):
        raise ConfigError(
            f"config key '{path}' cannot be set from the command line",
            given=repr(text),
            expected=_describe(kind, now),
            todo="set it in a recipe function (docs/architecture.md, 'Recipes')",
        )
    try:
        return _value(text, kind)
    except (ValueError, KeyError):
        raise ConfigError(
            f"config key '{path}' cannot hold this value",
            given=repr(text),
            expected=_describe(kind, now),
            todo="give a value of that type",
        ) from None


def _settable(kind: Any) -> bool:
    """Whether a value of this type can be written as text."""
    if _is_union(kind):
        return type(None) in typing.get_args(kind) or any(_settable(each) for each in _others(kind))
    if typing.get_origin(kind) is tuple:
        return all(_settable(each) and typing.get_origin(each) is not tuple for each in _elements(kind))
    return typing.get_origin(kind) is typing.Literal or kind in (bool, int, float, str) or _is_enum(kind)


def _value(text: str, kind: Any) -> Any:
    """`text` as a `kind`. Raises `ValueError` or `KeyError` where it is none."""
    if _is_union(kind):
        if type(None) in typing.get_args(kind) and text.lower() in ("none", "null"):
            return None
        for each in filter(_settable, _others(kind)):
            with contextlib.suppress(ValueError, KeyError):
                return _value(text, each)
        raise ValueError("none of them")
    if typing.get_origin(kind) is typing.Literal:
        return {str(choice): choice for choice in typing.get_args(kind)}[text]
    if typing.get_origin(kind) is tuple:
        parts, kinds = [part.strip() for part in text.split(",") if part.strip()], _elements(kind)
        kinds = kinds * len(parts) if _is_endless(kind) else kinds
        return tuple(_value(part, each) for part, each in zip(parts, kinds, strict=True))
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    if kind is int:
        return int(text.replace("_", ""))
    if kind is float and math.isnan(float(text)):
        raise ValueError("no rule can be asked of what is not a number")
    return kind(text)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _others(kind: Any) -> list[Any]:
    """The types of a union that are not `None`."""
    return [each for each in typing.get_args(kind) if each is not type(None)]


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _is_endless(kind: Any) -> bool:
    """Whether a type of tuples says nothing of their length."""
    return Ellipsis in typing.get_args(kind) or not typing.get_args(kind)


def _elements(kind: Any) -> list[Any]:
    """Types of a tuple's elements; one where there may be any number of them."""
    return [each for each in typing.get_args(kind) if each is not Ellipsis] or [str]


def _describe(kind: Any, now: Any) -> str:
    """What a value of this type looks like. A tuple is shown by the one that it would replace, where that has elements."""
    if _is_union(kind):
        found = " or ".join(_describe(each, now) for each in _others(kind))
        return f"{found}, or none" if type(None) in typing.get_args(kind) else found
    if _is_enum(kind):
        return "one of: " + ", ".join(str(m.value) for m in kind)
    if typing.get_origin(kind) is typing.Literal:
        return "one of: " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple and _settable(kind):
        kinds = _elements(kind)
        number = "any number of values" if _is_endless(kind) else f"{len(kinds)} values"
        names = dict.fromkeys(each.__name__ if isinstance(each, type) else _describe(each, None) for each in kinds)
        made = [EXAMPLES.get(each, "a") for each in (kinds * 2)[: max(2, len(kinds))]]
        shown = now if isinstance(now, tuple) and now else made
        return f"{number} of type {' and '.join(names)} with commas between them, such as {','.join(map(str, shown))}"
    return kind.__name__ if isinstance(kind, type) else str(kind)


EXAMPLES = {int: 64, float: 0.5, bool: True, str: "name"}
"""Elements of a tuple, for messages."""
