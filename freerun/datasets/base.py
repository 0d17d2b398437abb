"""What every recorded data set offers: episodes, one after another, as flat columns that fit together.

Shapes: R transitions of all episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Recorded episodes. `columns` are `obs`, `action`, `reward`, `next_obs`, `terminated`, `truncated`, `episode`, `step`, and
    `log_prob` where it is known, each [R, ...]; rows of an episode are consecutive and in order. `name` and `about` (reference
    returns, for instance) are for the records."""

    name: str
    columns: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        return len(self.columns["reward"])

    @property
    def lengths(self) -> list[int]:
        """Rows of each episode, in order."""
        _, counts = torch.unique_consecutive(self.columns["episode"], return_counts=True)
        return counts.tolist()

    def split(self, name: str) -> tuple[Tensor, ...]:
        """A column, episode by episode."""
        return self.columns[name].split(self.lengths)


class EpisodesConfig(Protocol):
    """A frozen, picklable description that gives the same episodes wherever it is built."""

    def build(self) -> Episodes: ...
