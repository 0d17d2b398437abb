"""Recorded episodes as flat columns that fit together, checked when they are made: what every data set becomes.

Shapes: R transitions of all episodes, E episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from freerun.errors import DataError

NEEDED = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "episode", "step")
FINITE = ("obs", "action", "reward", "next_obs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Recorded episodes. `columns` are those of `NEEDED`, and `log_prob` where it is known, each [R, ...]; rows of an episode
    are consecutive and in order, continuous actions lie in [-1, 1]. `about` is JSON-able: `env`, the id of the environment, and
    `scores`, returns of a random and of an expert policy, where they are known.

    Raises `DataError` naming the episode and the field for columns that do not fit together, or hold what cannot be trained on.
    """

    name: str
    columns: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.name, self.columns)

    @property
    def num_rows(self) -> int:
        return len(self.columns["reward"])

    @property
    def lengths(self) -> list[int]:
        """Rows of each episode, in order."""
        return _lengths(self.columns["episode"])

    def split(self, name: str) -> tuple[Tensor, ...]:
        """A column, episode by episode."""
        return self.columns[name].split(self.lengths)

    @property
    def returns(self) -> list[float]:
        """The undiscounted return of each episode."""
        return [float(reward.sum()) for reward in self.split("reward")]

    @property
    def scores(self) -> tuple[float, float] | None:
        """Returns of a random and of an expert policy, if they are known."""
        found = self.about.get("scores")
        return (float(found[0]), float(found[1])) if found else None


class EpisodesConfig(Protocol):
    """A frozen, picklable description that gives the same episodes wherever it is built."""

    def build(self) -> Episodes: ...


def check(name: str, columns: Mapping[str, Tensor]) -> None:
    """Raises `DataError` for columns that are no episodes."""
    if missing := [n for n in NEEDED if n not in columns]:
        raise _bad(name, None, missing[0], "absent", "a column of that name")
    sizes = {n: len(c) for n, c in columns.items()}
    num = sizes["reward"]
    if not num:
        raise _bad(name, None, "reward", "no transition", "at least one")
    for field_name, size in sizes.items():
        if size != num:
            raise _bad(name, None, field_name, f"{size} rows", f"{num} rows, as many as rewards")
    if not columns["reward"].is_floating_point():
        raise _bad(name, None, "reward", columns["reward"].dtype, "real numbers")
    if columns["next_obs"].shape != columns["obs"].shape:
        shapes = f"{tuple(columns['next_obs'].shape)} and {tuple(columns['obs'].shape)}"
        raise _bad(name, None, "next_obs", shapes, "the shape of obs")
    episode_R = columns["episode"]
    for field_name in FINITE:
        column = columns[field_name]
        if column.is_floating_point() and not bool(torch.isfinite(column).all()):
            row = int((~torch.isfinite(column.reshape(num, -1))).any(1).nonzero()[0])
            raise _bad(
                name, episode_R[row], field_name, f"{column[row].tolist()} at step {int(columns['step'][row])}", "finite"
            )
    action = columns["action"]
    if action.is_floating_point() and float(action.abs().max()) > 1.0 + 1e-5:
        row = int((action.abs().reshape(num, -1) > 1.0 + 1e-5).any(1).nonzero()[0])
        raise _bad(name, episode_R[row], "action", action[row].tolist(), "actions in [-1, 1], scaled from the bounds")
    _check_order(name, columns)


def _check_order(name: str, columns: Mapping[str, Tensor]) -> None:
    """Rows of an episode follow one another, and only its last says that it ended."""
    episode_R, step_R = columns["episode"], columns["step"]
    lengths = _lengths(episode_R)
    if len(torch.unique(episode_R)) != len(lengths):
        raise _bad(name, None, "episode", "rows of one episode in several places", "consecutive rows")
    last_R = torch.cat([episode_R[1:] != episode_R[:-1], torch.ones(1, dtype=torch.bool)])
    counted_R = torch.cat([torch.arange(n) for n in lengths])
    for wrong_R, field_name, expected in (
        (step_R != counted_R, "step", "0, 1, 2, ... in each episode"),
        (columns["terminated"] & ~last_R, "terminated", "only in the last step of an episode"),
        (columns["truncated"] & ~last_R, "truncated", "only in the last step of an episode"),
        (columns["truncated"] & columns["terminated"], "truncated", "never together with terminated"),
    ):
        if bool(wrong_R.any()):
            row = int(wrong_R.nonzero()[0])
            given = f"{columns[field_name][row].item()} in row {int(counted_R[row])}"
            raise _bad(name, episode_R[row], field_name, given, expected)
    inner = (~last_R[:-1]).nonzero()[:, 0]
    apart = (columns["next_obs"][inner] != columns["obs"][inner + 1]).reshape(len(inner), -1).any(1)
    if bool(apart.any()):
        row = int(inner[apart.nonzero()[0]])
        given = f"at step {int(step_R[row])} another than the next step's obs"
        raise _bad(name, episode_R[row], "next_obs", given, "observations that follow one another")


def _lengths(episode_R: Tensor) -> list[int]:
    _, counts = torch.unique_consecutive(episode_R, return_counts=True)
    return counts.tolist()


def _bad(name: str, episode: Tensor | None, field_name: str, given: object, expected: str) -> DataError:
    where = "" if episode is None else f", episode {int(episode)}"
    return DataError(
        f"data set '{name}'{where}, field '{field_name}' cannot be used",
        given=given,
        expected=expected,
        todo="mend the data set, or how it is read",
    )


def joined(name: str, parts: Sequence[Episodes]) -> Episodes:
    """The episodes of several data sets, numbered anew; what is known about the first is known about all."""
    columns: dict[str, Tensor] = {}
    for key in parts[0].columns:
        columns[key] = torch.cat([part.columns[key] for part in parts])
    columns["episode"] = torch.cat([torch.full((n,), i) for i, n in enumerate(n for part in parts for n in part.lengths)])
    return Episodes(name=name, columns=columns, about=parts[0].about)
