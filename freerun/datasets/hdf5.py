"""HDF5 files of D4RL. Needs the extra `control`."""

from pathlib import Path

import numpy as np

from freerun.errors import ConfigError, DataError

try:
    import h5py
except ImportError as error:
    raise ConfigError(
        "HDF5 files need a package that is not installed",
        given=str(error),
        expected="h5py",
        todo="pip install 'freerun[control]'",
    ) from error


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """The arrays at the top of a file. Raises `DataError` if it is none, or leads to other files."""
    refuse_what_leads_out(path)
    try:
        with h5py.File(path, "r") as file:
            return {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    except (KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _no_file(path, error) from error


def refuse_what_leads_out(path: Path) -> None:
    """Raises `DataError` for a file whose groups or arrays lie in other files: by a link, by storage outside of it, or as a
    view of others. The format has all three, and who wrote the file chose the paths."""
    try:
        with h5py.File(path, "r") as file:
            outside = _outside(file, set())
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _no_file(path, error) from error
    if outside:
        raise DataError(
            "a data set leads to other files",
            given=f"{path}: '{outside}'",
            expected="a file with all that belongs to it",
            todo="copy what it means into it, if you know who made it",
        )


def _outside(group: "h5py.Group", seen: set[int]) -> str:
    """The first name below `group` that leads out of its file; empty if none does. Groups may contain themselves."""
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            return f"{group.name}/{name}"
        if not isinstance(link, h5py.HardLink):
            continue  # to a name in this file, which is looked at under that
        entry = group[name]
        address = h5py.h5o.get_info(entry.id).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(entry, h5py.Dataset) and (entry.external or entry.is_virtual):
            return str(entry.name)
        if isinstance(entry, h5py.Group) and (found := _outside(entry, seen)):
            return found
    return ""


def _no_file(path: Path, error: BaseException) -> DataError:
    return DataError(
        "this is no HDF5 file", given=f"{path}: {error}", expected="a whole file, as D4RL has them", todo="check it"
    )
