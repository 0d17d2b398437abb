"""Data sets in files: our own `.npz`, and arrays as D4RL has them, in `.npz` or HDF5.

D4RL (arXiv 2004.07219) has flat `observations`, `actions`, `rewards`, `terminals`, `timeouts`. What was seen after the last
step of an episode is not in it: a terminal step gets its own observation (no value is taken there), and the last step of an
episode that did not terminate is left out, because there one would have to be. With `next_observations` every step is kept.

Shapes: R transitions.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freerun.datasets.base import NEEDED, Episodes
from freerun.errors import DataError

OWN = (*NEEDED, "log_prob")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """A file: `.npz` with our columns or D4RL's, or `.hdf5` with D4RL's. Raises `DataError` if it is neither."""

    path: str
    """Where it is."""

    def build(self) -> Episodes:
        path = Path(self.path)
        if not path.is_file():
            raise DataError("data set not found", given=path, expected="a file", todo="check the path")
        try:
            return _read(path)
        except BROKEN as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"data set '{path.stem}' cannot be read",
                given=f"{path}: {type(error).__name__}: {error}",
                expected="a whole file of plain arrays, our columns or D4RL's",
                todo="mend the data set, or get it again",
            ) from error


BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What readers of arrays raise for files that are none."""


def _read(path: Path) -> Episodes:
    if path.suffix == ".npz":
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    else:
        from freerun.datasets.hdf5 import read_hdf5

        arrays = read_hdf5(path)
    if "observations" in arrays:
        return from_d4rl(path.stem, arrays)
    about = _about(path, arrays["about"]) if "about" in arrays else {}
    found = {name: _numbers(path.stem, name, arrays[name]) for name in OWN if name in arrays}
    return Episodes(name=path.stem, columns={name: torch.from_numpy(array) for name, array in found.items()}, about=about)


def _about(path: Path, text: np.ndarray) -> dict[str, Any]:
    """What is known about a data set of ours."""
    try:
        about = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path.stem, "about", f"{type(error).__name__}: {error}", "JSON") from error
    if not isinstance(about, dict):
        raise _unreadable(path.stem, "about", str(text)[:80], "a JSON object")
    return about


def _numbers(name: str, field: str, value: Any) -> np.ndarray:
    """An array with a row for each transition."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise _unreadable(name, field, f"values of type {array.dtype}", "numbers")
    if not array.ndim:
        raise _unreadable(name, field, "a single number", "one value for each transition")
    return array


def _unreadable(name: str, field: str, given: object, expected: str) -> DataError:
    return DataError(f"data set '{name}', field '{field}' cannot be read", given=given, expected=expected, todo="mend it")


def write_npz(path: Path, episodes: Episodes) -> None:
    """Write our own format, so that a reader finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.new.npz")
    arrays: dict[str, Any] = {name: column.numpy() for name, column in episodes.columns.items() if name in OWN}
    np.savez_compressed(attempt, allow_pickle=False, about=np.array(json.dumps(dict(episodes.about))), **arrays)
    attempt.replace(path)


def from_d4rl(name: str, arrays: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> Episodes:
    """Episodes from flat arrays with D4RL's names. Raises `DataError` naming the array, or the episode and field, that does not
    fit."""
    found = {
        key: _numbers(name, key, arrays[key]) for key in ("observations", "actions", "rewards", "terminals") if key in arrays
    }
    if missing := [key for key in ("observations", "actions", "rewards", "terminals") if key not in found]:
        raise DataError(f"data set '{name}' lacks an array", given=sorted(arrays), expected=missing[0], todo="add it")
    num = len(found["rewards"])
    found["timeouts"] = _numbers(name, "timeouts", arrays.get("timeouts", np.zeros(num, bool)))
    if "next_observations" in arrays:
        found["next_observations"] = _numbers(name, "next_observations", arrays["next_observations"])
    for key, array in found.items():
        if len(array) != num:
            raise DataError(
                f"data set '{name}', field '{key}' is misaligned", given=f"{len(array)} rows", expected=num, todo="mend it"
            )
    if not num:
        raise _unreadable(name, "rewards", "no transition", "at least one")
    obs_R = torch.from_numpy(_single(found["observations"]))
    ended_R = torch.from_numpy(found["terminals"].astype(bool))
    cut_R = torch.from_numpy(found["timeouts"].astype(bool)) & ~ended_R
    over_R = ended_R | cut_R
    over_R[-1] = True
    episode_R = torch.cat([torch.zeros(1, dtype=torch.int64), over_R[:-1].cumsum(0)])
    action = found["actions"]
    columns = {
        "obs": obs_R,
        "action": torch.from_numpy(_single(action) if action.dtype.kind == "f" else action.astype(np.int64)),
        "reward": torch.from_numpy(_single(found["rewards"])),
        "terminated": ended_R,
        "truncated": over_R & ~ended_R,
        "episode": episode_R,
    }
    if "next_observations" in found:
        columns["next_obs"] = torch.from_numpy(_single(found["next_observations"]))
        keep_R = torch.ones(num, dtype=torch.bool)
    else:
        columns["next_obs"] = torch.where(over_R.view(-1, *[1] * (obs_R.dim() - 1)), obs_R, obs_R.roll(-1, 0))
        keep_R = ~(over_R & ~ended_R)
        # The step before the one that is left out is now the last: it is where the episode was cut.
        columns["truncated"] = torch.cat([(over_R & ~ended_R)[1:], torch.zeros(1, dtype=torch.bool)]) & keep_R
    if not bool(keep_R.any()):
        given = "episodes of one step that did not terminate"
        raise _unreadable(name, "next_observations", given, "what was seen after them, or longer episodes")
    columns = {key: column[keep_R] for key, column in columns.items()}
    _, counts = torch.unique_consecutive(columns["episode"], return_counts=True)
    columns["episode"] = torch.repeat_interleave(torch.arange(len(counts)), counts)
    columns["step"] = torch.cat([torch.arange(n, dtype=torch.int32) for n in counts.tolist()])
    return Episodes(name=name, columns=columns, about=about or {})


def _single(array: np.ndarray) -> np.ndarray:
    """In float32. What is too large for that becomes infinite, which the check of episodes refuses by name."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinariConfig:
    """A Minari data set."""

    source: str
    """A folder that Minari wrote, or an id such as `D4RL/hopper/medium-v2`."""
    download: bool = False
    """Get it from the hub if it is not in the local database."""
    see: tuple[str, ...] = ()
    """Of observations with named parts, those that become the vector; none named: all, in alphabetical order."""

    def build(self) -> Episodes:
        """See `minari.read`. Raises `ConfigError` if Minari is not installed."""
        from freerun.datasets.minari import read

        return read(self.source, download=self.download, see=self.see)
