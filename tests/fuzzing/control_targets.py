"""Readers that only runs of control have: recorded episodes in three formats, and chunks in a checkpoint."""

import io
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from fuzzing.inputs import VALUES, Target, changed, hurt, scratch
from hypothesis import strategies as st

from freerun.datasets.base import Episodes
from freerun.datasets.files import FileConfig, MinariConfig
from freerun.encoding import decode_chunk, encode_chunk
from freerun.errors import CheckpointError, DataError
from freerun.transitions import Chunk

STEPS = 3


def columns() -> dict[str, np.ndarray]:
    """One episode, in our own format."""
    seen = np.arange(STEPS + 1, dtype=np.float32)[:, None]
    last = np.arange(STEPS) == STEPS - 1
    return {
        "obs": seen[:-1],
        "next_obs": seen[1:],
        "action": np.zeros((STEPS, 1), np.float32),
        "reward": np.ones(STEPS, np.float32),
        "terminated": last,
        "truncated": ~last & last,
        "episode": np.zeros(STEPS, np.int64),
        "step": np.arange(STEPS, dtype=np.int32),
    }


def d4rl() -> dict[str, np.ndarray]:
    own = columns()
    names = {
        "observations": "obs",
        "actions": "action",
        "rewards": "reward",
        "terminals": "terminated",
        "timeouts": "truncated",
    }
    return {name: own[column] for name, column in names.items()}


ODD = st.sampled_from(
    [
        np.zeros(()),
        np.zeros(0, np.float32),
        np.zeros((STEPS, 0), np.float32),
        np.zeros((STEPS, 1, 1), np.float32),
        np.full(STEPS, np.nan),
        np.full((STEPS, 1), 1e300),
        np.zeros(STEPS, np.complex64),
        np.zeros(STEPS, "datetime64[s]"),
        np.array(["a"] * STEPS),
        np.zeros(STEPS, [("a", np.int8)]),
        np.zeros(STEPS + 1, np.uint16),
        np.arange(STEPS)[::-1],
    ]
)


@st.composite
def arrays(draw, wholes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One of `wholes` with an array or two replaced, missing or added."""
    found = dict(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*found, "about", "log_prob", "next_observations", "x"]))
        if draw(st.integers(0, 3)):
            found[name] = draw(ODD | VALUES.map(lambda value: np.array(json.dumps(value))))
        else:
            found.pop(name, None)
    return found


def npz(found: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **found)
    return file.getvalue()


def check_episodes(episodes: Episodes) -> None:
    assert sum(episodes.lengths) == episodes.num_rows > 0
    assert all(torch.isfinite(torch.tensor(value)) for value in episodes.returns)


def check_npz(data: bytes) -> None:
    path = scratch() / "episodes.npz"
    path.write_bytes(data)
    try:
        found = FileConfig(path=str(path)).build()
    except DataError:
        return
    check_episodes(found)


def hdf5(found: dict[str, np.ndarray]) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as written:
        for name, array in found.items():
            if array.dtype.kind not in "MU":
                written[name] = array
    return file.getvalue()


def check_hdf5(data: bytes) -> None:
    path = scratch() / "episodes.hdf5"
    path.write_bytes(data)
    try:
        found = FileConfig(path=str(path)).build()
    except DataError:
        return
    check_episodes(found)


@cache
def whole_minari() -> Path:
    """A folder as Minari writes it."""
    from freerun.datasets.minari import write

    torchy = {name: torch.from_numpy(column) for name, column in columns().items()}
    torchy["obs"], torchy["next_obs"] = (torchy[name].expand(-1, 3).contiguous() for name in ("obs", "next_obs"))
    return write(scratch() / "minari", "freerun/fuzz-v0", Episodes(name="fuzz", columns=torchy), env="Pendulum-v1") / "data"


def minari_files() -> st.SearchStrategy[tuple[str, bytes]]:
    metadata = json.loads((whole_minari() / "metadata.json").read_text())
    data = (whole_minari() / "main_data.hdf5").read_bytes()
    spaces = ["observation_space", "action_space"]
    inner = st.sampled_from(spaces).flatmap(
        lambda name: changed(json.loads(metadata[name])).map(lambda space: {**metadata, name: json.dumps(space)})
    )
    said = (changed(metadata) | inner).map(lambda value: json.dumps(value).encode()) | hurt([json.dumps(metadata).encode()])
    return st.tuples(st.just("metadata.json"), said) | st.tuples(st.just("main_data.hdf5"), hurt([data]))


def check_minari(file: tuple[str, bytes]) -> None:
    name, data = file
    folder = scratch() / "minari-hurt"
    shutil.copytree(whole_minari(), folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data)
    try:
        found = MinariConfig(source=str(folder)).build()
    except DataError:
        return
    check_episodes(found)


@cache
def chunk() -> bytes:
    kept = {name: torch.from_numpy(column)[:, None] for name, column in columns().items()}
    return encode_chunk(Chunk(item=3, actor=0, columns=kept, oldest_version=1))


def check_chunk(data: bytes) -> None:
    try:
        found = decode_chunk(data)
    except CheckpointError:
        return
    assert decode_chunk(encode_chunk(found)).columns.keys() == found.columns.keys()


CONTROL: dict[str, Target] = {
    "episodes in our own format or D4RL's": Target(
        arrays([columns(), d4rl()]).map(npz) | hurt([npz(columns()), npz(d4rl())]), check_npz
    ),
    "episodes of D4RL in HDF5": Target(st.deferred(lambda: arrays([d4rl()]).map(hdf5) | hurt([hdf5(d4rl())])), check_hdf5),
    "data set of Minari": Target(st.deferred(minari_files), check_minari),
    "chunk in a checkpoint": Target(st.deferred(lambda: hurt([chunk()])), check_chunk),
}

NEEDS = {"episodes of D4RL in HDF5": "h5py", "data set of Minari": "minari"}
"""Targets for which a package has to be installed that the core does without."""
