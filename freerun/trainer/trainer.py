"""The trainer for language models: consumes groups, updates the policy, publishes versions. Blind to the algorithm.

One step is `accumulate(groups)`, as often as groups arrive (check, credit; forward and backward of full micro-batches, where
they may start early), then `finish_step` (the rest; division by global counts, clipping, AdamW; publication of version v + 1).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from freerun.algorithms.base import AlgorithmConfig, State, Term
from freerun.errors import ConfigError, Diverged
from freerun.models.base import ModelConfig
from freerun.trainer import state as files
from freerun.trainer.batch import (
    PRODUCED,
    Row,
    advantage_metrics,
    batch_of,
    check_group,
    data_metrics,
    rows_of,
    split_silent,
)
from freerun.trainer.config import LoraConfig, TrainerConfig, ValueHeadConfig
from freerun.trainer.examples import group_of
from freerun.trainer.learner import CURRENT, FROZEN, Learner, NotFinite, give
from freerun.trainer.prompt_value import COLUMN as VALUE
from freerun.trainer.prompt_value import PromptValue, check_fitted, give_values
from freerun.trainer.reports import AccumulateReport, StepReport
from freerun.trainer.update import GradientSum, check_algorithm, due, global_counts, share_a_count
from freerun.types import Example, Group, Mean, Metric, Sampling, Source, Sum, WeightsRef, merge_all
from freerun.weights.channel import Publisher

__all__ = ["AccumulateReport", "LoraConfig", "StepReport", "TrainerConfig", "TrainerExecutor", "check"]


def check(
    config: TrainerConfig,
    algorithm: AlgorithmConfig,
    group_size: int,
    sampling: Sampling | None = None,
    *,
    fits_value: bool = False,
) -> None:
    """Raises `ConfigError` for a combination that cannot learn, before anything starts. `fits_value` says whether the run has a
    stage in which the value of the reference policy is fitted."""
    built = algorithm.build()
    check_algorithm(built, PRODUCED)
    check_fitted(built, fits_value)
    if built.group_baseline and group_size == 1:
        raise ConfigError(
            f"algorithm '{built.name}' compares siblings, and a group of one has none",
            given="group_size 1",
            expected="group_size >= 2",
            todo="raise --control.group-size, or use an algorithm without a group baseline",
        )
    if sampling is not None and sampling.temperature != config.temperature:
        raise ConfigError(
            "the trainer and the generator disagree on the temperature",
            given=f"{config.temperature} and {sampling.temperature}",
            expected="log-probs under the temperature of sampling",
            todo="set trainer.temperature to sampling.temperature",
        )


class TrainerExecutor:
    """Owns the policy (`model`), the optimiser and the algorithm's state. `version` is the newest one published, or, before
    `start`, the one that will be.

    A batch on which the run diverges is written below `directory`; None writes nothing.
    """

    def __init__(
        self,
        model: ModelConfig,
        algorithm: AlgorithmConfig,
        config: TrainerConfig,
        publisher: Callable[[], Publisher],
        directory: Path | None = None,
    ) -> None:
        self._algorithm = algorithm.build()
        check_algorithm(self._algorithm, PRODUCED)
        self._config, self._directory = config, directory
        self.model = model.build(dtype="float32", device=config.device, seed=config.seed)
        routing = self._algorithm.routing != "free"
        self._learner = Learner(self.model.model, config, critic=self._algorithm.has_critic, routing=routing)
        self._warm: torch.optim.Optimizer | None = None
        self._publisher = publisher()
        self._pinned: frozenset[int] = frozenset()
        self.version, self._num_updates = 0, 0
        self._state: State = self._algorithm.init()
        self._fresh_only, self._epochs = False, config.epochs
        self._groups: list[Group] = []
        self._rows: list[Row] = []
        self._records: list[Mapping[str, Metric]] = []
        self._begin_step()

    # --- one step ------------------------------------------------------------------------------------------------------------

    def start(self) -> WeightsRef:
        """Publish the current weights: version 0, or the one that was loaded. The optimiser of `warm_start` is forgotten, and
        frozen policies that the algorithm wants are frozen here."""
        self._warm = None
        check_fitted(self._algorithm, self._learner.value is not None)
        for column, name in (*FROZEN.items(), (VALUE, "reference")):
            if column in self._algorithm.columns and name not in self._learner.frozen:
                self._learner.freeze(name)
        return self._publisher.publish(self.version, self._learner.published())

    def accumulate(self, items: Sequence[Group | Example]) -> AccumulateReport:
        """Take items of the current step; replayed ones count as unused once the algorithm wants fresh ones only. Where it
        allows, micro-batches that are full run now.

        Raises `DataError` or `StaleItem` for items that must not be trained on, before any of them is; `Diverged` for a loss
        that is not finite.
        """
        given = [group_of(item, self.model) if isinstance(item, Example) else item for item in items]
        for group in given:
            check_group(group, version=self.version, max_lag=self._config.max_lag, max_age=self._config.max_age)
        groups = [group for group in given if not (self._fresh_only and group.source is Source.REPLAY)]
        if len(groups) < len(given):
            self._records.append({f"items/unused/{Source.REPLAY}": Sum(len(given) - len(groups))})
        if not groups:
            return AccumulateReport(len(self._groups), len(self._rows))
        if not self._groups:
            self._fire("batch_start", {})
            self._loss_state = self._state
            self._gradient = GradientSum(self._algorithm, self._due(), self._loss_state)
        rows: list[Row] = []
        for group in groups:
            with self._learner.timed("credit"):
                credited, self._state = rows_of(group, len(self._groups), self._algorithm, self._state, version=self.version)
            rows += credited
            self._groups.append(group)
        if self._learner.value is not None and VALUE in self._algorithm.columns:
            with self._learner.timed("forward"):
                give_values(rows, self._learner.value, self._learner.reference())
        self._records.append(data_metrics(groups, rows))
        if "advantage" not in self._algorithm.makes:
            self._records.append(advantage_metrics(rows))
        if not self._streams():
            self._rows += rows
            return AccumulateReport(len(self._groups), len(self._rows))
        loud, silent = split_silent(rows, self._algorithm)
        self._gradient.add_silent(batch_of(silent, self._learner.policy.device))
        self._rows += loud
        if self._learner.is_small(self._rows):
            return AccumulateReport(len(self._groups), len(self._rows))
        packs = self._learner.packs(self._rows, balance=False)
        with self._saving_what_is_not_finite():
            for pack in packs[:-1]:
                self._learner.backward(pack, self._rows, self._gradient, self._algorithm, before_update=True)
        self._rows = [self._rows[i] for i in packs[-1].members] if packs else []
        return AccumulateReport(len(self._groups), len(self._rows))

    def finish_step(self, keep: Iterable[int] = ()) -> StepReport:
        """Finish the step: optimiser steps, and version v + 1, published. Versions in `keep` stay readable, those that an
        earlier step kept and this one does not are let go. Raises `Diverged` for a loss or a gradient that is not finite."""
        if self._algorithm.forget_moments:
            self._learner.optimizer.state.clear()
        before = self._learner.policy_now() if "previous" in self._learner.frozen else None
        with self._saving_what_is_not_finite():
            if self._streams():
                for pack in self._learner.packs(self._rows):
                    self._learner.backward(pack, self._rows, self._gradient, self._algorithm, before_update=True)
                self._apply(self._gradient)
            else:
                self._minibatches()
        self.version += 1
        with self._learner.timed("publish"):
            self._hold(frozenset(keep))
            ref = self._publisher.publish(self.version, self._learner.published())
        seconds, computed = self._learner.take_records()
        metrics = merge_all(self._records) | computed
        self._fire("iteration_end", metrics)
        if before is not None:
            self._learner.frozen["previous"] = before
        if self._algorithm.rebase(self._state):
            self._learner.freeze("reference")
        self._begin_step()
        return StepReport(self.version, ref, metrics, seconds)

    def warm_start(self, examples: Sequence[Example], algorithm: AlgorithmConfig, lr: float) -> Mapping[str, Metric]:
        """One supervised step, before `start`, on demonstrations. It has an optimiser of its own, makes no version and leaves
        the algorithm of the run alone. Raises `Diverged` like any step."""
        built = algorithm.build()
        authors = {"logp_behaviour"} if all(example.logps for example in examples) else set()
        check_algorithm(built, frozenset({"mask", *authors}))
        self._warm = self._warm or self._learner.new_optimizer()
        rows: list[Row] = []
        for index, example in enumerate(examples):
            rows += rows_of(group_of(example, self.model), index, built, built.init(), version=self.version)[0]
        counts = global_counts(built.terms, batch_of(rows, self._learner.policy.device))
        gradient = GradientSum(built, built.terms, built.init(), counts)
        with self._saving_what_is_not_finite():
            for pack in self._learner.packs(rows):
                self._learner.backward(pack, rows, gradient, built, before_update=False)
            norm = self._learner.step(gradient, self._warm, lr)
        self._learner.take_records()
        return {k: v for k, v in gradient.metrics().items() if k.startswith("loss/")} | {"grad_norm": Mean(norm, 1)}

    # --- the value of prompts, fitted before `start` -------------------------------------------------------------------------

    def fit_value(self, examples: Sequence[Example], config: ValueHeadConfig) -> float:
        """One step on the rewards of these examples, whose responses stand for the reference policy's. As `PromptValue.fit`."""
        learner = self._learner
        learner.value = learner.value or PromptValue(learner.policy, self.model, config, self._config.seed)
        return learner.value.fit(learner.reference(), examples)

    def judge_value(self, examples: Sequence[Example]) -> float:
        """Mean squared error on examples that were held back; what is fitted counts from now on if it is the least so far."""
        return self._fitted().judge(self._learner.reference(), examples)

    def values(self, examples: Sequence[Example]) -> list[float]:
        """The reward that the reference policy may expect on the prompt of each example."""
        return self._fitted().of(self._learner.reference(), examples)

    def _fitted(self) -> PromptValue:
        assert self._learner.value is not None, "the value of prompts is fitted before it is asked for"
        return self._learner.value

    # --- versions and checkpoints --------------------------------------------------------------------------------------------

    def pin(self, version: int) -> None:
        """Keep `version` readable."""
        self._publisher.pin(version)

    def release(self, version: int) -> None:
        """Undo one `pin`."""
        self._publisher.release(version)

    def save(self, directory: str | Path) -> None:
        """Write networks, optimiser, algorithm state, random state and counters as plain files into `directory`. In the middle
        of a step this saves the moment before it: the step's groups are to be given again."""
        path, learner = Path(directory), self._learner
        path.mkdir(parents=True, exist_ok=True)
        files.save_networks(path, learner.networks())
        files.save_optimizer(path / "optimizer.safetensors", learner.optimizer, learner.trained)
        random_state = {"cpu": torch.get_rng_state()}
        if learner.policy.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(learner.policy.device)
        counters = {"version": self.version, "num_updates": self._num_updates, "frozen": sorted(learner.frozen)}
        counters["value"] = None if learner.value is None else asdict(learner.value.config)
        files.save_values(path, "trainer", {**counters, "algorithm": self._state_before_step, "random": random_state})

    def load(self, directory: str | Path) -> int:
        """Go back to what `save` wrote and return its version, which `start` will publish. Raises `CheckpointError` if the
        files are not all there or do not fit the config."""
        path, learner = Path(directory), self._learner
        values = files.load_values(path, "trainer")
        for name in values["frozen"]:
            learner.freeze(name)
        if values["value"] is not None:
            head = ValueHeadConfig(**values["value"])
            learner.value = PromptValue(learner.policy, self.model, head, self._config.seed)
        files.load_networks(path, learner.networks())
        files.load_optimizer(path / "optimizer.safetensors", learner.optimizer, learner.trained)
        self.version, self._num_updates, self._state = values["version"], values["num_updates"], values["algorithm"]
        torch.set_rng_state(values["random"]["cpu"])
        if learner.policy.device.type == "cuda":
            torch.cuda.set_rng_state(values["random"]["cuda"], learner.policy.device)
        learner.optimizer.zero_grad()
        self._begin_step()
        return self.version

    def close(self) -> None:
        """Free the published buffers."""
        self._publisher.close()

    # --- inside a step -------------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._state_before_step = self._loss_state = self._state
        self._groups, self._rows, self._records = [], [], []
        self._fresh_only = self._algorithm.fresh_only(self._state)
        self._epochs = 1 if self._fresh_only else self._config.epochs
        self._gradient = GradientSum(self._algorithm, self._due(), self._loss_state)

    def _due(self) -> tuple[Term, ...]:
        return due(self._algorithm, self._num_updates)

    def _streams(self) -> bool:
        """True if micro-batches may run before the step is complete."""
        once = self._config.minibatches * self._epochs == 1
        return once and share_a_count(self._due()) and self._algorithm.prepare is None and self._algorithm.probe is None

    def _minibatches(self) -> None:
        """The step when all of its groups have to be there: several optimiser steps, terms with different denominators, columns
        made from the whole, or a look at it before the update."""
        learner, algorithm = self._learner, self._algorithm
        self._fix_columns()
        for index, chosen in enumerate(self._parts()):
            rows = [row for row in self._rows if row.per_row["group"] in chosen]
            loud, silent = split_silent(rows, algorithm)
            if algorithm.probe is not None and loud:
                outputs, batch = learner.look(loud, sorted({name for term in self._due() for name in term.outputs}))
                batch = batch.read_by(f"the look of algorithm '{algorithm.name}'")
                self._loss_state = self._state = algorithm.probe(outputs, batch, self._loss_state)
            counts = global_counts(self._due(), batch_of(rows, learner.policy.device))
            gradient = GradientSum(algorithm, self._due(), self._loss_state, counts)
            gradient.add_silent(batch_of(silent, learner.policy.device))
            for pack in learner.packs(loud):
                learner.backward(pack, loud, gradient, algorithm, before_update=index == 0)
            self._apply(gradient)
            self._loss_state = self._state

    def _fix_columns(self) -> None:
        """Give the rows of the step what has to be made before its first update: if `prepare` reads what networks make, for all
        rows and in one pass; else after it, for those that it leaves something to learn from."""
        algorithm, learner = self._algorithm, self._learner
        several = self._config.minibatches * self._epochs > 1
        wanted = (set(FROZEN) | (set(CURRENT) if several else set(CURRENT) & algorithm.uses)) & algorithm.columns
        routing = several and algorithm.routing == "update"
        early = bool(wanted & algorithm.uses)
        if early:
            learner.fix_columns(self._rows, wanted, routing=routing)
        if algorithm.prepare is not None and self._rows:
            batch = batch_of(self._rows, learner.policy.device).read_by(f"algorithm '{algorithm.name}'")
            for name, value_BT in algorithm.prepare(batch, self._loss_state).items():
                give(self._rows, range(len(self._rows)), name, value_BT)
        if "advantage" in algorithm.makes:
            self._records.append(advantage_metrics(self._rows))
        if not early:
            learner.fix_columns(split_silent(self._rows, algorithm)[0], wanted, routing=routing)

    def _parts(self) -> Iterator[frozenset[int]]:
        """The groups of each minibatch, over all epochs, in an order that follows from seed and version alone."""
        config, num = self._config, len(self._groups)
        for epoch in range(self._epochs):
            seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{self.version}/{epoch}".encode()).digest()[:7])
            order = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
            for part in range(min(config.minibatches, max(1, num))):
                yield frozenset(order[part :: config.minibatches])

    def _apply(self, gradient: GradientSum) -> None:
        """The optimiser step that `gradient` is for, if any term was due."""
        metrics = gradient.metrics()
        if self._due():
            lr = self._config.learning_rate(self._num_updates)
            norm = self._learner.step(gradient, self._learner.optimizer, lr)
            metrics |= {"grad_norm": Mean(norm, 1), "lr": Mean(lr, 1)}
        self._num_updates += 1
        self._records.append(metrics)
        self._fire("optimizer_step", metrics)

    @contextmanager
    def _saving_what_is_not_finite(self) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            self._learner.optimizer.zero_grad()
            what, value = error.args
            saved = "the batch is not saved: the trainer has no directory"
            if self._directory is not None:
                directory = self._directory / f"diverged-{self.version}"
                files.save_batch(directory, self._groups, {"what": what, "value": repr(value), "version": self.version})
                saved = f"the batch is saved in {directory}"
            raise Diverged(
                f"the {what} of the step after version {self.version} is not finite",
                given=f"{value}; {saved}",
                expected="a finite number",
                todo="look at the rewards and log-probs of the batch; a lower trainer.lr often helps",
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
