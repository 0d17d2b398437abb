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
    """The arrays at the top of a file. Raises `DataError` if it is none."""
    try:
        with h5py.File(path, "r") as file:
            return {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    except OSError as error:
        raise DataError("this is no HDF5 file", given=f"{path}: {error}", expected="a file of D4RL", todo="check it") from error
