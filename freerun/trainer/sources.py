"""Where rows of batches come from: storages with their samplers, and the batches that a phase makes of them.

Shapes: R rows of a data set or a chunk, B rows of a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from freerun.datasets.base import Episodes
from freerun.errors import ConfigError, StaleItem
from freerun.ops.values import returns_to_go
from freerun.store.mix import Portions, Share, Spells
from freerun.store.phases import Phase
from freerun.trainer.control_config import DatasetConfig, SourceConfig
from freerun.trainer.returns import Returns
from freerun.trainer.samplers import ByPriority, sampler_of
from freerun.trainer.storage import NOWHERE, Storage
from freerun.transitions import transitions
from freerun.types import Batch, Max, Mean, Metric

BULK_BYTES = 32 << 20
"""Rows for several updates are read together up to this size: one gather in place of many."""
READY_MADE = ("weight", "row", "source", "lag")


class Source:
    """One storage, how it is sampled, and what its rows need. With `returns`, rows of chunks get their returns to go."""

    def __init__(
        self, config: SourceConfig, capacity: int, *, gamma: float, directory: Path | None, returns: bool = False
    ) -> None:
        self.config, self._gamma = config, gamma
        self.storage = Storage(capacity, directory=directory)
        self.sampler = sampler_of(config.sampler, capacity)
        self.returns = Returns(gamma) if returns else None

    def insert(self, key: int, actor: int, columns_TN: Mapping[str, Tensor]) -> None:
        """Add a chunk."""
        if self.returns is not None:
            columns_TN = self.returns.unknown(columns_TN)
        self.sampler.inserted(self.storage.insert_chunk(key, actor, columns_TN))
        if self.returns is not None:
            self.returns.inserted(self.storage, actor, columns_TN)

    @property
    def by_priority(self) -> bool:
        return isinstance(self.sampler, ByPriority)

    def draw(self, num: int, names: frozenset[str], generator: Generator, version: int) -> dict[str, Tensor]:
        """Columns of `num` rows. Raises `ConfigError` if there is none."""
        if not len(self.storage):
            raise ConfigError(
                f"source '{self.config.name}' has no rows to draw",
                given="a storage that nothing was put into, or whose rows are all too old",
                expected="a phase that collects before it learns from it",
                todo="name the phase's sources in the recipe, or put a phase with env_steps before it",
            )
        place_B, relative_B = self.sampler.draw(self.storage, num, generator)
        columns = self.storage.read(place_B, names.difference(READY_MADE), gamma=self._gamma, steps=self.config.steps)
        if "lag" in names:
            columns["lag"] = version - self.storage.columns["version"][place_B]
        if "row" in names or self.by_priority:
            columns["row"] = place_B
        if relative_B is not None:
            weight_B = relative_B.pow(-self.config.correction)
            columns["weight"] = weight_B / weight_B.max()
        elif "weight" in names:
            columns["weight"] = torch.ones(num)
        return columns

    def ages(self, version: int) -> dict[str, Metric]:
        """How old the rows are that may be drawn, from some of them, evenly spread; nothing of a data set."""
        if isinstance(self.config, DatasetConfig) or not len(self.storage):
            return {}
        place_B = torch.linspace(self.storage.first, self.storage.total - 1, 256).long() % self.storage.capacity
        lag_B = (version - self.storage.columns["version"][place_B]).float()
        return {"lag/mean": Mean(float(lag_B.sum()), len(lag_B)), "lag/max": Max(float(lag_B.max()))}

    def row_bytes(self) -> int:
        """Bytes of a row, about."""
        return sum(c[0].numel() * c.element_size() for c in self.storage.columns.values())


def load(config: DatasetConfig, episodes: Episodes, reward_R: Tensor, *, gamma: float) -> Source:
    """A source that holds the data set with these rewards, and its returns to go."""
    if config.best_share < 1.0:
        parts, totals = torch.arange(episodes.num_rows).split(episodes.lengths), [e.sum() for e in episodes.split("reward")]
        best = sorted(range(len(parts)), key=lambda i: float(totals[i]), reverse=True)
        keep = torch.cat([parts[i] for i in sorted(best[: max(1, math.ceil(config.best_share * len(parts)))])])
    else:
        keep = torch.arange(episodes.num_rows)
    columns = {name: column[keep] for name, column in {**episodes.columns, "reward": reward_R}.items()}
    num = len(columns["reward"])
    columns.setdefault("log_prob", torch.full((num,), math.nan))
    columns["version"] = torch.full((num,), -1, dtype=torch.int32)
    link_R = torch.arange(1, num + 1)
    last_R = torch.cat([columns["episode"][1:] != columns["episode"][:-1], torch.ones(1, dtype=torch.bool)])
    link_R[last_R] = NOWHERE
    ends = (last_R.nonzero()[:, 0] + 1).tolist()
    columns["mc_return"] = torch.cat(
        [returns_to_go(columns["reward"][a:b], gamma) for a, b in zip([0, *ends], ends, strict=False)]
    )
    source = Source(config, num, gamma=gamma, directory=None)
    source.sampler.inserted(source.storage.insert(columns, link_R))
    return source


class Batches:
    """The rows of one update, by source; terms that do not name one get all of them together."""

    def __init__(self, by_source: Mapping[str, Batch]) -> None:
        self.by_source = by_source
        self._union: Batch | None = None

    def of(self, source: str) -> Batch:
        """The rows of `source`, or of all sources for "". Raises `ConfigError` for one that this phase does not have."""
        if source:
            if source not in self.by_source:
                raise ConfigError(
                    f"a term reads rows of source '{source}', which this phase does not have",
                    given=sorted(self.by_source),
                    expected=source,
                    todo="add it to the phase's sources in the recipe, or switch the term off in the phase",
                )
            return self.by_source[source]
        if self._union is None:
            batches = list(self.by_source.values())
            self._union = batches[0] if len(batches) == 1 else _side_by_side(batches)
        return self._union


def _side_by_side(batches: Sequence[Batch]) -> Batch:
    """The rows of all, in the columns that all have."""
    names = set.intersection(*(set(batch) for batch in batches))
    return transitions({name: torch.cat([batch[name] for batch in batches]) for name in names})


class Sources:
    """The storages of a run, and the batches that phases make of them."""

    def __init__(
        self, sources: Mapping[str, Source], *, batch: int, names: frozenset[str], device: torch.device, generator: Generator
    ) -> None:
        self.sources, self._batch, self._names = sources, batch, names
        self._device, self._generator = device, generator
        self._portions: Portions | Spells | None = None
        self._phase = -1

    def begin(self, index: int, phase: Phase, *, rollouts: bool) -> None:
        """The phase `index` begins, whose terms read `rollouts` or what its sources give."""
        shares = phase.shares or ({} if rollouts else dict.fromkeys(self._usual(phase), Share(1.0)))
        if unknown := sorted(set(shares) - set(self.sources)):
            raise ConfigError(
                f"phase '{phase.name}' draws from sources that the run does not have: {', '.join(unknown)}",
                given=sorted(self.sources),
                expected=sorted(shares),
                todo="add them to `sources` in the recipe",
            )
        self._phase, self._portions = index, None
        if shares and phase.spell:
            self._portions = Spells(shares, self._batch, length=phase.spell, seed=self._generator.initial_seed() + index)
        elif shares:
            self._portions = Portions(shares, self._batch)

    def _usual(self, phase: Phase) -> list[str]:
        """The sources of a phase that names none."""
        data = [name for name, source in self.sources.items() if isinstance(source.config, DatasetConfig)]
        return data if data and not phase.env_steps else list(self.sources)

    @property
    def gives(self) -> bool:
        """Whether the phase draws from any source."""
        return self._portions is not None

    def batches(self, updates: int, *, step: int, version: int, max_age: int | None) -> Iterator[Batches]:
        """The rows of `updates` updates, of which the first is number `step` of the phase."""
        portions = self._portions
        if portions is None:
            raise ConfigError("a phase has nothing to train on", given="no source", expected="one", todo="correct the recipe")
        while updates:
            some = min(updates, self._at_once(portions))
            parts = [portions.take(step + i) for i in range(some)]
            drawn = {name: self._drawn(name, [part[name] for part in parts], version, max_age) for name in portions.shares}
            for i in range(some):
                by_source = {name: pieces[i] for name, pieces in drawn.items() if parts[i][name]}
                yield Batches({name: transitions(columns) for name, columns in by_source.items()})
            updates, step = updates - some, step + some

    def _at_once(self, portions: Portions | Spells) -> int:
        """Updates for which rows may be drawn together: one where what is drawn depends on the update before."""
        sources = [self.sources[name] for name in portions.shares]
        if any(source.by_priority for source in sources):
            return 1
        size = self._batch * max(1, *(source.row_bytes() for source in sources), 1)
        return max(1, BULK_BYTES // size)

    def _drawn(self, name: str, nums: Sequence[int], version: int, max_age: int | None) -> list[dict[str, Tensor]]:
        source, total = self.sources[name], sum(nums)
        if not total:
            return [{} for _ in nums]
        names = self._names | ({"lag"} if max_age is not None and not isinstance(source.config, DatasetConfig) else set())
        columns = source.draw(total, names, self._generator, version)
        if max_age is not None and "lag" in columns and not isinstance(source.config, DatasetConfig):
            oldest = int(columns["lag"].max())
            if oldest > max_age:
                raise StaleItem(
                    f"source '{name}' gave a transition that is too old",
                    given=f"lag {oldest}, trainer at version {version}",
                    expected=f"at most {max_age}",
                    todo="report this: the table gives up chunks that are older",
                )
        if "source" in self._names:
            columns["source"] = torch.full((total,), list(self.sources).index(name))
        columns = {key: column.to(self._device) for key, column in columns.items()}
        if len(nums) == 1:
            return [columns]
        split = {key: column.split(list(nums)) for key, column in columns.items()}
        return [{key: pieces[i] for key, pieces in split.items()} for i in range(len(nums))]

    def state(self) -> dict[str, Any]:
        """What replay holds, what samplers know, what rounding owes. Data sets are loaded again, not saved."""
        kept = {n: s for n, s in self.sources.items() if not isinstance(s.config, DatasetConfig)}
        return {
            "phase": self._phase,
            "portions": self._portions.state() if self._portions is not None else None,
            "storages": {name: source.storage.state() for name, source in kept.items()},
            "samplers": {name: source.sampler.state() for name, source in self.sources.items()},
            "returns": {name: source.returns.state() for name, source in kept.items() if source.returns is not None},
            "generator": self._generator.get_state(),
        }

    def load(self, state: Mapping[str, Any], phases: Sequence[Phase], *, rollouts: Callable[[Phase], bool]) -> None:
        """Undo `state`."""
        if state["phase"] >= 0:
            phase = phases[state["phase"]]
            self.begin(state["phase"], phase, rollouts=rollouts(phase))
        if self._portions is not None:
            self._portions.load(state["portions"])
        for name, stored in state["storages"].items():
            self.sources[name].storage.load(stored)
        for name, stored in state["samplers"].items():
            self.sources[name].sampler.load(stored)
        for name, stored in state["returns"].items():
            returns = self.sources[name].returns
            assert returns is not None, "the columns that an algorithm reads follow from its config"
            returns.load(stored)
        self._generator.set_state(state["generator"])
