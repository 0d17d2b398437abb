"""Minari data sets, in and out: local folders, and by their id from the local database or the hub. Needs the extra `control`.

Shapes: T steps of an episode, whose observations are T + 1.
"""

import importlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freerun.datasets.base import Episodes
from freerun.datasets.hdf5 import refuse_what_leads_out
from freerun.errors import ConfigError, DataError

try:
    import gymnasium
    import minari
    from gymnasium import spaces as kinds
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.storage.datasets_root_dir import get_dataset_path
except ImportError as error:
    raise ConfigError(
        "Minari data sets need a package that is not installed",
        given=str(error),
        expected="minari",
        todo="pip install 'freerun[control]'",
    ) from error


BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What Minari and what it reads with raise for files that are not what they wrote."""


def read(source: str, *, download: bool = False, see: tuple[str, ...] = ()) -> Episodes:
    """The episodes of a folder, or of an id such as `D4RL/hopper/medium-v2`; with `download`, from the hub if it is not here.
    Observations of several parts become one vector, of the parts in `see` if any are named.

    Raises `DataError` for a data set that is not there, that is not what Minari wrote, that leads to other files or that would
    have to run code to be read, naming the episode and field that does not fit.
    """
    folder = _folder(source, download)
    try:
        _refuse_what_runs(source, folder)
        for path in sorted(folder.rglob("*.hdf5")):
            refuse_what_leads_out(path)
        return _episodes(source, minari.MinariDataset(folder), see)
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"data set '{source}' cannot be read",
            given=f"{type(error).__name__}: {error}",
            expected="what Minari wrote",
            todo="mend the data set, or get it again",
        ) from error


def _folder(source: str, download: bool) -> Path:
    """Where the data are. Raises `DataError` if they are nowhere."""
    for folder in (Path(source) / "data", Path(source)):
        if folder.is_dir():
            return folder
    try:
        folder = get_dataset_path(source) / "data"
        if not folder.is_dir() and download:
            minari.download_dataset(source)
    except (OSError, ValueError, KeyError) as error:
        raise _absent(source, f"{type(error).__name__}: {error}") from error
    if not folder.is_dir():
        raise _absent(source, f"nothing at {folder}")
    return folder


def _absent(source: str, given: str) -> DataError:
    return DataError(
        f"data set '{source}' is not here",
        given=given,
        expected="a folder that Minari wrote, or an id of its database",
        todo="check the path, or allow the download",
    )


def _refuse_what_runs(source: str, folder: Path) -> None:
    """Where a data set does not say its spaces, Minari makes its environment to ask for them, by whatever function the data set
    names: that would be code of who wrote it."""
    metadata = json.loads((folder / "metadata.json").read_text())
    missing = [name for name in ("observation_space", "action_space") if not isinstance(metadata[name], str)]
    if missing:
        raise KeyError(missing[0])


def _episodes(source: str, data: Any, see: tuple[str, ...]) -> Episodes:
    space, action_space = data.spec.observation_space, data.spec.action_space
    columns: dict[str, list[Any]] = {}
    for number, episode in enumerate(data.iterate_episodes()):
        seen = _seen(episode.observations, space, see)
        acted = _acted(episode.actions, action_space, source)
        num = len(episode.rewards)
        sizes = {"observations": len(seen) - 1, "actions": len(acted), "terminations": len(episode.terminations)}
        for field_name, size in {**sizes, "truncations": len(episode.truncations)}.items():
            if size != num:
                raise DataError(
                    f"data set '{source}', episode {number}, field '{field_name}' is misaligned",
                    given=f"{size} steps",
                    expected=f"{num} steps, as many as rewards" + (", and one more" if field_name == "observations" else ""),
                    todo="mend the data set",
                )
        terminated = np.asarray(episode.terminations, bool)
        truncated = np.asarray(episode.truncations, bool) & ~terminated
        if not (terminated[-1] or truncated[-1]):
            truncated[-1] = True  # the recording ended before the episode did
        for name, array in {
            "obs": seen[:-1],
            "next_obs": seen[1:],
            "action": acted,
            "reward": np.asarray(episode.rewards, np.float32),
            "terminated": terminated,
            "truncated": truncated,
            "episode": np.full(num, number),
            "step": np.arange(num, dtype=np.int32),
        }.items():
            columns.setdefault(name, []).append(array)
    flat = {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in columns.items()}
    return Episodes(name=str(data.spec.dataset_id), columns=flat, about=_about(data))


def _about(data: Any) -> dict[str, Any]:
    metadata = data.storage.metadata
    about = {"env": data.spec.env_spec.id} if data.spec.env_spec is not None else {}
    if metadata.get("ref_min_score") is not None and metadata.get("ref_max_score") is not None:
        about["scores"] = [float(metadata["ref_min_score"]), float(metadata["ref_max_score"])]
    return about


def _seen(observations: Any, space: "kinds.Space", see: tuple[str, ...]) -> np.ndarray:
    """Observations as vectors [T + 1, ...], or as they are where they have more dimensions."""
    if isinstance(observations, Mapping):
        names = see or sorted(observations)
        parts = [np.asarray(observations[name], np.float32) for name in names]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    array = np.asarray(observations)
    if isinstance(space, kinds.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[array - int(space.start)]
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _acted(actions: Any, space: "kinds.Space", source: str) -> np.ndarray:
    """Actions in [-1, 1], or indices from 0."""
    if isinstance(space, kinds.Discrete):
        return np.asarray(actions, np.int64) - int(space.start)
    if isinstance(space, kinds.Box) and np.isfinite([space.low, space.high]).all():
        scaled = (np.asarray(actions, np.float64) - space.low) / (space.high - space.low) * 2.0 - 1.0
        return scaled.astype(np.float32)
    raise DataError(
        f"data set '{source}' has actions of another kind",
        given=space,
        expected="Discrete or a bounded Box",
        todo="convert them first",
    )


def _check_fit(episodes: Episodes, world: "gymnasium.Env") -> None:
    """Raises `DataError` for episodes that `world` cannot have made."""
    seen, acted = world.observation_space, world.action_space
    seen_shape = seen.shape if isinstance(seen, kinds.Box) else (kinds.flatdim(seen),)
    obs, action = episodes.columns["obs"], episodes.columns["action"]
    discrete = isinstance(acted, kinds.Discrete)
    shape = () if discrete else acted.shape
    if seen_shape != obs.shape[1:] or shape != action.shape[1:] or discrete == action.is_floating_point():
        raise DataError(
            f"data set '{episodes.name}' is of another environment",
            given=f"observations {tuple(obs.shape[1:])}, actions {tuple(action.shape[1:])} of {action.dtype}",
            expected=f"{seen} and {acted}",
            todo="name the environment that it was recorded in",
        )


def _parts(space: "kinds.Space", obs_T: np.ndarray) -> Any:
    """Observations as `space` has them: an array, or an array for each part."""
    if isinstance(space, kinds.Box):
        return obs_T
    rows = [kinds.unflatten(space, row) for row in obs_T]
    return {name: np.stack([row[name] for row in rows]) for name in space} if isinstance(space, kinds.Dict) else np.array(rows)


def _buffers(episodes: Episodes, world: "gymnasium.Env") -> list[EpisodeBuffer]:
    """The episodes as `world` has them."""
    space, buffers = world.action_space, []
    obs, next_obs, action = (episodes.split(name) for name in ("obs", "next_obs", "action"))
    terminated, truncated = episodes.split("terminated"), episodes.split("truncated")
    for i, reward in enumerate(episodes.split("reward")):
        played = action[i].numpy()
        if isinstance(space, kinds.Box):
            # In double precision: adding one takes digits of a small action that come back nowhere.
            share = (played.astype(np.float64).clip(-1.0, 1.0) + 1.0) / 2.0
            played = (space.low + share * (space.high - space.low)).astype(space.dtype)
        else:
            played = played + int(space.start)
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=_parts(world.observation_space, np.concatenate([obs[i].numpy(), next_obs[i][-1:].numpy()])),
                actions=played,
                rewards=reward.tolist(),
                terminations=terminated[i].tolist(),
                truncations=truncated[i].tolist(),
                infos={},
            )
        )
    return buffers


def write(
    folder: Path,
    dataset_id: str,
    episodes: Episodes,
    *,
    env: str,
    modules: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
    about: str = "",
) -> Path:
    """Write `episodes`, of the Gymnasium environment `env`, as the Minari data set `dataset_id` below `folder`; returns where
    it is. Actions are scaled to the environment's bounds, and vectors that stand for several parts are these parts again.
    `modules` are imported first, because they register the environment, and `options` go to `gymnasium.make`.

    Raises `ConfigError` for an environment, an id or a place that cannot be, `DataError` for episodes of another environment.
    """
    if not re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", dataset_id) or (folder / dataset_id).exists():
        raise ConfigError(
            "a Minari data set cannot be written under this id",
            given=f"{dataset_id} in {folder}",
            expected="NAME-v0 or NAMESPACE/NAME-v0, with any number, that is not there yet",
            todo="choose another id or folder",
        )
    try:
        for module in modules:
            importlib.import_module(module)
        world = gymnasium.make(env, **(options or {}))
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(
            "the environment of a data set cannot be made", given=f"{env}: {error}", expected="an id", todo="correct it"
        ) from error
    _check_fit(episodes, world)
    buffers = _buffers(episodes, world)
    scores = episodes.scores
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "a data set cannot be written there", given=error, expected="a folder, or room for one", todo="choose another"
        ) from error
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=world,
                observation_space=world.observation_space,
                action_space=world.action_space,
                ref_min_score=scores[0] if scores else None,
                ref_max_score=scores[1] if scores else None,
                description=about or f"{episodes.name}, written by Freerun",
                data_format="hdf5",
                jpeg_encoding=False,  # which would change pixels
            )
    finally:
        world.close()
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
    return folder / dataset_id
