"""Checkpoint files that anybody can read: safetensors and JSON, nothing that runs code. Atomicity is the caller's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from freerun.errors import CheckpointError

_TENSOR = "_tensor"


def save_values(directory: Path, name: str, values: Mapping[str, Any]) -> None:
    """Numbers, strings, tensors, and mappings and lists of them: `<name>.json`, and `<name>.safetensors` for the tensors."""
    tensors: dict[str, Tensor] = {}
    (directory / f"{name}.json").write_text(json.dumps(_split(values, tensors), indent=1))
    save_file(tensors, directory / f"{name}.safetensors")


def load_values(directory: Path, name: str) -> dict[str, Any]:
    """Undo `save_values`. Raises `CheckpointError` if a file is missing or is not what was written."""
    try:
        # Copies: what is loaded are views of the file.
        tensors = {key: tensor.clone() for key, tensor in load_file(directory / f"{name}.safetensors").items()}
        return _join(json.loads((directory / f"{name}.json").read_text()), tensors)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise unusable(directory / f"{name}.json", f"{type(error).__name__}: {error}", "the trainer's state") from error


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved to `tensors` and a reference in its place."""
    if isinstance(value, Tensor):
        key = f"{len(tensors):06d}"
        tensors[key] = value.detach().contiguous().cpu().clone()
        return {_TENSOR: key}
    if isinstance(value, Mapping):
        return {str(k): _split(v, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split(v, tensors) for v in value]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[_TENSOR]] if set(value) == {_TENSOR} else {k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value


def unusable(path: Path, given: str, expected: str) -> CheckpointError:
    """The error for a file that cannot be loaded."""
    return CheckpointError(
        f"cannot load {path.name} of the checkpoint",
        given=given,
        expected=expected,
        todo=f"check {path}, and that the config is the run's own",
    )
