"""Self-made data sets in the grades of D4RL, kept in a cache and made when they are first needed (`tasks/grades.py`)."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freerun.datasets.base import Episodes
from freerun.datasets.files import FileConfig
from freerun.errors import ConfigError, DataError

GradeName = Literal["random", "medium", "medium-replay", "medium-expert", "expert"]
GRADES: tuple[GradeName, ...] = ("random", "medium", "medium-replay", "medium-expert", "expert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A self-made data set: `random` actions; a `medium` policy, the first on the way that is a third as good as the last; all
    that was collected until then (`medium-replay`); the last policy (`expert`); and half of each of two (`medium-expert`)."""

    env: str = "pendulum"
    """A name from `freerun dataset list`."""
    grade: GradeName = "medium"
    """How good the policy is that acts in it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.env) or self.grade not in GRADES:
            raise ConfigError(
                "there is no data set of such a name",
                given=f"{self.env}/{self.grade}",
                expected=f"the name of an environment, and one of {', '.join(GRADES)}",
                todo="`freerun dataset list` shows them",
            )

    @property
    def path(self) -> Path:
        return path_of(self.env, self.grade)

    def build(self) -> Episodes:
        """Raises `DataError` if it is not made yet; `freerun run` makes what a recipe asks for."""
        if not self.path.is_file():
            raise DataError(
                f"data set {self.env}/{self.grade} is not made yet",
                given=f"nothing at {self.path}",
                expected="a file that `freerun dataset make` wrote",
                todo=f"freerun dataset make {self.env}",
            )
        return FileConfig(path=str(self.path)).build()


def cache() -> Path:
    """Where made data sets are: `FREERUN_CACHE`, or below the user's cache."""
    own = os.environ.get("FREERUN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "freerun"


def path_of(env: str, grade: str) -> Path:
    return cache() / "datasets" / env / f"{grade}.npz"
