"""The trainer of control: takes chunks of transitions, updates networks, publishes versions. Blind to the algorithm.

One step is `accumulate(chunks)`, as often as chunks arrive (checked, then stored, or kept for the step where terms read
rollouts), then `finish_step` (its updates; publication of version v + 1). The calls are those of the trainer of language.

Shapes: T steps of a chunk, N environments, R rows of a step, B rows of a batch.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from freerun import plainfiles as files
from freerun.algorithms.control_base import ControlConfig, Stage, State
from freerun.datasets.base import Episodes
from freerun.errors import ConfigError, DataError, Diverged, StaleItem
from freerun.ops.ratios import lag_counts
from freerun.store.phases import Phase, Plan
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, SourceConfig
from freerun.trainer.control_update import NotFinite, Updated, Updater
from freerun.trainer.reports import AccumulateReport, StepReport
from freerun.trainer.rollouts import Rollouts
from freerun.trainer.sources import Batches, Source, Sources, load
from freerun.trainer.statistics import RewardScale, Running
from freerun.transitions import Chunk, Spaces
from freerun.types import Histogram, Max, Mean, Metric, Sum, WeightsRef, merge_all
from freerun.weights.channel import Publisher

ROLLOUT = "rollout"
"""The source that the chunks of a step are."""


class ControlTrainer:
    """Owns networks, optimisers, storages and the algorithm's state. `version` is the newest one published, or, before `start`,
    the one that will be. A batch on which the run diverges is written below `directory`; None writes nothing."""

    def __init__(
        self,
        algorithm: ControlConfig,
        spaces: Spaces,
        config: ControlTrainerConfig,
        phases: Sequence[Phase],
        sources: Sequence[SourceConfig],
        publisher: Callable[[], Publisher],
        directory: Path | None = None,
    ) -> None:
        self._algorithm, self._config, self._phases = algorithm.build(), config, tuple(phases)
        self._directory, self._device = directory, torch.device(config.device)
        self._updater = Updater(self._algorithm, spaces, config)
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        self._state: State = self._algorithm.init()
        self._observed, self._rewards = Running(), RewardScale(self._algorithm.gamma)
        self._scale = config.reward_scale
        self._sources = self._build_sources(sources)
        self._publisher = publisher()
        self._pinned: frozenset[int] = frozenset()
        self.version, self._phase, self._phase_updates = 0, -1, 0
        self._rollouts = Rollouts(self._algorithm, self._device)
        self._last = Batches({})
        self._records: list[Mapping[str, Metric]] = []
        self._seconds: dict[str, float] = {}

    def _build_sources(self, configs: Sequence[SourceConfig]) -> Sources:
        algorithm, config = self._algorithm, self._config
        built: dict[str, Source] = {}
        for source in configs:
            if isinstance(source, DatasetConfig):
                episodes = source.data.build()
                self._adapt_to_data(episodes)
                paid = episodes.columns["reward"] * self._scale + config.reward_shift
                built[source.name] = load(source, episodes, paid, gamma=algorithm.gamma)
                rows = built[source.name].storage.columns
                self._updater.remember(source.name, rows["obs"], rows["action"])
            else:
                mapped = self._directory / f"storage-{source.name}" if source.mapped and self._directory else None
                returns = "mc_return" in algorithm.needs
                built[source.name] = Source(source, source.capacity, gamma=algorithm.gamma, directory=mapped, returns=returns)
        # What `prepare` makes of rollouts is no column of any storage.
        names = algorithm.needs if algorithm.consumes == "replay" else algorithm.needs - algorithm.makes
        generator = torch.Generator().manual_seed(config.seed + 1)
        return Sources(built, batch=config.batch, names=frozenset(names), device=self._device, generator=generator)

    def _adapt_to_data(self, episodes: Episodes) -> None:
        """Statistics and the scale of rewards that come from a data set; the first one decides."""
        if self._config.observations == "data" and not self._observed.count:
            self._observed.add(episodes.columns["obs"])
            self._updater.set_statistics(*self._observed.statistics())
        if self._config.rewards == "range" and self._scale == self._config.reward_scale:
            totals_E = torch.stack([episode.sum() for episode in episodes.split("reward")])
            self._scale *= 1000.0 / max(float(totals_E.max() - totals_E.min()), 1e-6)

    # --- one step ------------------------------------------------------------------------------------------------------------

    def start(self) -> WeightsRef:
        """Publish the current weights: version 0, or the one that was loaded."""
        return self._publisher.publish(self.version, self._published())

    def _published(self) -> dict[str, Tensor]:
        return self._updater.published()

    def accumulate(self, chunks: Sequence[Chunk]) -> AccumulateReport:
        """Take chunks: for this step where terms read rollouts, else into the storage named "replay", or the first one that
        actors fill. Raises `DataError` or `StaleItem` for chunks that must not be trained on, before any of them is taken."""
        for chunk in chunks:
            self._check(chunk)
        with self._timed("store"):
            for chunk in chunks:
                if self._config.observations == "running":
                    self._observed.add(chunk.columns["obs"].flatten(0, 1))
                reward_TN = self._paid(chunk)
                columns = {**chunk.columns, "reward": reward_TN}
                if self._algorithm.consumes == "rollout":
                    self._rollouts.add(replace(chunk, columns=columns, ended=(), failures=()))
                else:
                    self._filled().insert(chunk.item, chunk.actor, columns)
        return AccumulateReport(len(self._rollouts), 0)

    def finish_step(self, keep: Iterable[int] = (), plan: Plan | None = None) -> StepReport:
        """Do the updates of the step, and publish version v + 1. Versions in `keep` stay readable, those that an earlier step
        kept and this one does not are let go. Raises `Diverged` for a loss or a gradient that is not finite."""
        plan = plan or Plan()
        self._enter(plan)
        with self._saving_what_is_not_finite():
            num = self._learn_from_rollouts(plan) if len(self._rollouts) else self._learn_from_storages(plan)
        if self._config.observations == "running" and self._observed.count:
            # After the updates: what was collected for them was seen with the statistics of its version.
            self._updater.set_statistics(*self._observed.statistics())
        self.version += 1
        with self._timed("publish"):
            self._hold(frozenset(keep))
            ref = self._publisher.publish(self.version, self._published())
        metrics = merge_all(self._records) | {"updates": Sum(num)}
        metrics |= {f"time/{phase}": Sum(seconds) for phase, seconds in self._seconds.items()}
        self._fire("iteration_end", metrics)
        self._rollouts.end_step()
        seconds, self._seconds, self._records = self._seconds, {}, []
        return StepReport(self.version, ref, metrics, seconds)

    def _enter(self, plan: Plan) -> None:
        phase = self._phases[plan.phase]
        for source in self._sources.sources.values():
            source.storage.keep_from(plan.first)
        if plan.phase != self._phase:
            self._phase, self._phase_updates = plan.phase, 0
            self._sources.begin(plan.phase, phase, rollouts=self._reads_rollouts(phase))
            self._state = {**self._state, **phase.settings}
            for name in phase.fresh:
                self._updater.moments[name].forget()
            self._fire("phase_start", {})

    def _learn_from_storages(self, plan: Plan) -> int:
        """`plan.updates` updates on rows that the phase's sources give."""
        if not plan.updates:
            return 0
        max_age = self._config.max_age
        batches = self._sources.batches(plan.updates, step=self._phase_updates, version=self.version, max_age=max_age)
        for i in range(plan.updates):
            with self._timed("sample"):
                rows = next(batches)
            updated = self._update(rows, plan, report=i == plan.updates - 1)
        self._records.append(updated.metrics)
        self._records += [self._sources.sources[name].ages(self.version) for name in rows.by_source]
        return plan.updates

    def _learn_from_rollouts(self, plan: Plan) -> int:
        """The stages whose turn it is."""
        stages = self._algorithm.stages or (Stage(),)
        due = [stage for stage in stages if (self.version + 1) % stage.every == 0]
        return sum(self._run(stage, plan, first=i == 0) for i, stage in enumerate(due))

    def _run(self, stage: Stage, plan: Plan, *, first: bool) -> int:
        """Epochs of minibatches over the rows of rollouts, each row once per epoch, beside rows of other sources."""
        config = self._config
        with self._timed("prepare"), torch.no_grad():
            self._updater.copy(stage.copies)
            rows = self._rollouts.rows(self._updater.networks, self._state, self.version)
        num, minibatches = len(rows["lag"]), stage.minibatches or config.minibatches
        epochs, size = stage.epochs or config.epochs, -(-num // minibatches)
        last = epochs * -(-num // size)
        others: Iterator[Batches] = iter(())
        if self._sources.gives:
            others = self._sources.batches(last, step=self._phase_updates, version=self.version, max_age=None)
        orders = (torch.randperm(num, generator=self._noise, device=self._device).split(size) for _ in range(epochs))
        terms = [term for term in self._algorithm.terms if not stage.terms or term.name in stage.terms]
        may_end = any(term.until is not None for term in terms)
        updated = Updated({}, None, False)
        for done, index_B in enumerate(itertools.chain.from_iterable(orders), 1):
            beside = next(others).by_source if self._sources.gives else {}
            batches = Batches({ROLLOUT: rows.rows(index_B), **beside})
            updated = self._update(batches, plan, report=may_end or done == last, only=stage.terms)
            if updated.enough:
                break
        self._records.append(updated.metrics)
        self._records += [self._sources.sources[name].ages(self.version) for name in batches.by_source if name != ROLLOUT]
        if first:
            self._records.append(_lags(rows["lag"]))
        return done

    def _update(self, batches: Batches, plan: Plan, *, report: bool, only: Collection[str] = ()) -> Updated:
        self._last = batches
        if not self._phase_updates:
            self._review(batches, plan)
        share = 1.0 - plan.done if self._config.schedule == "linear" else 1.0
        with self._timed("update"):
            phase = self._phases[plan.phase]
            updated = self._updater.update(batches, self._state, self._noise, phase, lr_share=share, report=report, only=only)
        self._phase_updates += 1
        self._review(batches, plan)
        if updated.surprise is not None:
            self._tell_samplers(batches, updated.surprise)
        self._fire("update", updated.metrics)
        return updated

    def _review(self, batches: Batches, plan: Plan) -> None:
        """Reviews whose turn it is."""
        off = self._phases[plan.phase].off
        for review in self._algorithm.reviews:
            if self._phase_updates % review.every == 0 and review.name not in off:
                with self._timed("review"):
                    self._state = self._updater.review(review, batches.of(""), self._state, self._noise)

    def _tell_samplers(self, batches: Batches, surprise_B: Tensor) -> None:
        """Give each source that goes by surprise its part; rows of the union are in the order of the sources."""
        start = 0
        for name, batch in batches.by_source.items():
            num = len(next(iter(batch.values())))
            if name in self._sources.sources and self._sources.sources[name].by_priority:
                self._sources.sources[name].sampler.surprised(batch["row"].cpu(), surprise_B[start : start + num].cpu())
            start += num

    def _reads_rollouts(self, phase: Phase) -> bool:
        return self._algorithm.consumes == "rollout" and phase.env_steps > 0

    # --- data ----------------------------------------------------------------------------------------------------------------

    def _filled(self) -> Source:
        """The storage that actors fill."""
        for source in self._sources.sources.values():
            if not isinstance(source.config, DatasetConfig):
                return source
        raise ConfigError(
            "actors collect, and the run has no storage for it",
            given=sorted(self._sources.sources),
            expected="a ReplayConfig among the sources",
            todo="add one to `sources` in the recipe",
        )

    def _check(self, chunk: Chunk) -> None:
        """What admission and the actors promise, checked where it matters."""
        version_TN = chunk.columns["version"]
        oldest, newest = int(version_TN.min()), int(version_TN.max())
        limit = self._config.max_lag if self._algorithm.consumes == "rollout" else None
        if oldest < 0 or newest > self.version or (limit is not None and self.version - oldest > limit):
            raise StaleItem(
                f"chunk {chunk.item} has transitions of the wrong age",
                given=f"versions {oldest} to {newest}, trainer at version {self.version}",
                expected="none newer than the trainer" + ("" if limit is None else f", none older than lag {limit}"),
                todo="report this: admission makes it impossible, unless trainer.max_lag is below the lag bound of the run",
            )
        for name in ("obs", "action", "reward", "next_obs"):
            column = chunk.columns[name]
            if not column.is_floating_point() or bool(torch.isfinite(column).all()):
                continue
            t, n = (~torch.isfinite(column)).nonzero()[0, :2].tolist()
            raise DataError(
                f"chunk {chunk.item} has a value in '{name}' that is not finite",
                given=f"episode {int(chunk.columns['episode'][t, n])}, step {int(chunk.columns['step'][t, n])}",
                expected="finite numbers",
                todo="mend the environment",
            )

    def _paid(self, chunk: Chunk) -> Tensor:
        """The chunk's rewards as losses see them."""
        reward_TN = chunk.columns["reward"] * self._scale + self._config.reward_shift
        if self._config.rewards != "running":
            return reward_TN
        return self._rewards.scaled(chunk.actor, reward_TN, chunk.columns["terminated"] | chunk.columns["truncated"])

    # --- versions and checkpoints --------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """All networks, targets included, as `<network>.<name>`: copies."""
        return {name: tensor.clone() for name, tensor in self._updater.weights().items()}

    def set_weights(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Go on from these weights, which `weights` gave somewhere, as those of `version`. Optimisers and storages stay."""
        self.version = version
        with torch.no_grad():
            for name, own in self._updater.weights().items():
                own.copy_(tensors[name])

    def save(self, directory: str | Path) -> None:
        """Write networks, optimisers, algorithm state, storages, random states and counters into `directory`. Chunks of a step
        that is not finished are not saved: they are to be given again."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        files.save_values(
            path,
            "trainer",
            {
                "version": self.version,
                "phase": self._phase,
                "phase_updates": self._phase_updates,
                "algorithm": self._state,
                "updater": self._updater.state(),
                "sources": self._sources.state(),
                "observed": self._observed.state(),
                "rewards": self._rewards.state(),
                "scale": self._scale,
                "rollouts": self._rollouts.state(),
                "noise": self._noise.get_state(),
            },
        )

    def load(self, directory: str | Path) -> int:
        """Go back to what `save` wrote and return its version, which `start` will publish. Raises `CheckpointError` if the
        files are not all there or do not fit the config."""
        values = files.load_values(Path(directory), "trainer")
        try:
            self._updater.load(values["updater"])
            self._sources.load(values["sources"], self._phases, rollouts=self._reads_rollouts)
        except (KeyError, RuntimeError, IndexError) as error:
            raise files.unusable(Path(directory) / "trainer.json", f"{type(error).__name__}: {error}", "this run's") from error
        self.version, self._phase, self._phase_updates = values["version"], values["phase"], values["phase_updates"]
        self._state, self._scale = values["algorithm"], values["scale"]
        self._observed.load(values["observed"])
        self._rewards.load(values["rewards"])
        self._noise.set_state(values["noise"])
        self._rollouts.load(values["rollouts"])
        self._records = []
        return self.version

    def close(self) -> None:
        """Free the published buffers."""
        self._publisher.close()

    # --- helpers -------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def _saving_what_is_not_finite(self) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            what, value = error.args
            saved = "the batch is not saved: the trainer has no directory"
            if self._directory is not None:
                directory = self._directory / f"diverged-{self.version}"
                directory.mkdir(parents=True, exist_ok=True)
                rows = {name: dict(batch) for name, batch in self._last.by_source.items()}
                files.save_values(
                    directory, "batch", {"what": what, "value": repr(value), "version": self.version, "rows": rows}
                )
                saved = f"the batch is saved in {directory}"
            raise Diverged(
                f"the {what} of the step after version {self.version} is not finite",
                given=f"{value}; {saved}",
                expected="a finite number",
                todo="look at rewards and observations; lower learning rates or clip_norm often help",
            ) from error

    def _fire(self, event: str, metrics: Mapping[str, Metric]) -> None:
        if event in self._algorithm.events:
            self._state = self._algorithm.events[event](self._state, metrics)

    def _hold(self, keep: frozenset[int]) -> None:
        for version in keep - self._pinned:
            self._publisher.pin(version)
        for version in self._pinned - keep:
            self._publisher.release(version)
        self._pinned = keep


def _lags(lag_TN: Tensor) -> dict[str, Metric]:
    """How old the step's rows are."""
    return {
        "lag/mean": Mean(float(lag_TN.sum()), lag_TN.numel()),
        "lag/max": Max(float(lag_TN.max())),
        "lag/tokens": Histogram(lag_counts(lag_TN.flatten())),
    }
