"""The trainer for language models: consumes groups, updates the policy, publishes versions. Blind to the algorithm.

One step is `accumulate(groups)`, as often as groups arrive (check, credit; forward and backward of full micro-batches, where
they may start early), then `finish_step` (the rest; division by global counts, clipping, AdamW; publication of version v + 1).
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from freerun.algorithms.base import AlgorithmConfig, State
from freerun.errors import ConfigError, Diverged
from freerun.models.base import ModelConfig
from freerun.trainer import state as files
from freerun.trainer.batch import PRODUCED, Row, batch_of, check_group, data_metrics, demonstration_rows, rows_of
from freerun.trainer.config import LoraConfig, TrainerConfig
from freerun.trainer.forward import Policy, named_weights
from freerun.trainer.packing import Pack, packs_of_rows, packs_of_trees
from freerun.trainer.update import GradientSum, check_algorithm, divide_and_clip, due, global_counts, share_a_count
from freerun.types import Group, Mean, Metric, Prompt, Sampling, Sum, WeightsRef, merge_all
from freerun.weights.channel import Publisher

__all__ = ["AccumulateReport", "LoraConfig", "StepReport", "TrainerConfig", "TrainerExecutor", "check"]


@dataclass(frozen=True, slots=True)
class AccumulateReport:
    """Groups of the step so far, and its trajectories that wait for a micro-batch to fill up."""

    groups: int
    waiting: int


@dataclass(frozen=True, slots=True)
class StepReport:
    """A finished step: the version it published, where, what was measured, and the seconds of each phase."""

    version: int
    ref: WeightsRef
    metrics: Mapping[str, Metric]
    seconds: Mapping[str, float]


def check(config: TrainerConfig, algorithm: AlgorithmConfig, group_size: int, sampling: Sampling | None = None) -> None:
    """Raises `ConfigError` for a combination that cannot learn, before anything starts."""
    built = algorithm.build()
    check_algorithm(built, PRODUCED)
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
    """Owns the policy, the optimiser and the algorithm's state. `version` is the newest one published, or to be published
    first.

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
        self._language_model = model.build(dtype="float32", device=config.device, seed=config.seed)
        network = self._language_model.model
        if config.lora is not None:
            # peft is optional and slow to import, so only its leaf file imports it, and only runs that use it import that.
            from freerun.trainer.lora import add_adapters, merged

            add_adapters(network, config.lora, config.seed)
            self._published: Callable[[], Mapping[str, Tensor]] = lambda: merged(named_weights(network), network)
        else:
            self._published = lambda: named_weights(network)
        self._policy = Policy(network, config)
        self._reference: Policy | None = None
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimizer = _adamw(self._trained.values(), config)
        self._warm: torch.optim.Optimizer | None = None
        self._publisher = publisher()
        self._pinned: frozenset[int] = frozenset()
        self.version, self._num_updates = 0, 0
        self._state: State = self._algorithm.init()
        self._seconds: dict[str, float] = {}
        self._begin_step()

    # --- one step ------------------------------------------------------------------------------------------------------------

    def start(self) -> WeightsRef:
        """Publish the current weights: version 0, or the one that was loaded. The optimiser of `warm_start` is forgotten, and a
        reference policy, if the algorithm wants one, is frozen here."""
        self._warm = None
        if "logp_reference" in self._algorithm.needs and self._reference is None:
            self._reference = Policy(copy.deepcopy(self._policy.model).requires_grad_(False), self._config)
        return self._publisher.publish(self.version, self._published())

    def accumulate(self, groups: Sequence[Group]) -> AccumulateReport:
        """Take groups of the current step. Where the algorithm allows, micro-batches that are full run now.

        Raises `DataError` or `StaleItem` for groups that must not be trained on, before any of them is; `Diverged` for a loss
        that is not finite.
        """
        for group in groups:
            check_group(group, version=self.version, max_lag=self._config.max_lag)
        if not self._groups:
            self._fire("batch_start", {})
            self._loss_state = self._state
            self._sum = GradientSum(self._algorithm, due(self._algorithm, self._num_updates), self._loss_state, None)
        rows: list[Row] = []
        for group in groups:
            with self._timed("credit"):
                credited, self._state = rows_of(group, len(self._groups), self._algorithm, self._state, version=self.version)
            rows += credited
            self._groups.append(group)
        self._records.append(data_metrics(groups, rows))
        self._rows += rows
        if self._streams():
            packs = self._packs(self._rows, balance=False)
            for pack in packs[:-1]:
                self._micro_batch(pack, self._rows, self._sum, before_update=True)
            self._rows = [self._rows[i] for i in packs[-1].members] if packs else []
        return AccumulateReport(len(self._groups), len(self._rows))

    def finish_step(self, keep: Iterable[int] = ()) -> StepReport:
        """Finish the step: at least one optimiser step, and version v + 1, published. Versions in `keep` stay readable, those
        that an earlier step kept and this one does not are let go. Raises `Diverged` for a loss or gradient that is not
        finite."""
        if self._streams():
            for pack in self._packs(self._rows):
                self._micro_batch(pack, self._rows, self._sum, before_update=True)
            self._apply(self._sum)
        else:
            self._minibatches()
        self.version += 1
        with self._timed("publish"):
            self._hold(frozenset(keep))
            ref = self._publisher.publish(self.version, self._published())
        metrics = merge_all(self._records)
        computed, padding = (metrics[name].value for name in ("tokens/computed", "tokens/padding"))
        metrics["tokens/padding"] = Mean(padding, computed)
        self._fire("iteration_end", metrics)
        seconds, self._seconds = self._seconds, {}
        self._begin_step()
        return StepReport(self.version, ref, metrics | {f"time/{k}": Sum(v) for k, v in seconds.items()}, seconds)

    def warm_start(self, pairs: Sequence[tuple[Prompt, str]], algorithm: AlgorithmConfig, lr: float) -> Mapping[str, Metric]:
        """One supervised step, before `start`, on (prompt, response) pairs; the end-of-sequence token closes each response. It
        has an optimiser of its own, makes no version and leaves the algorithm of the run alone. Raises as `accumulate` does."""
        built = algorithm.build()
        check_algorithm(built, frozenset({"mask", "advantage"}))
        if self._warm is None:
            self._warm = _adamw(self._trained.values(), self._config)
        model = self._language_model
        # Models with several such tokens add the one that ends a turn last.
        end = max(model.eos)
        rows = demonstration_rows([(model.encode(p), [*model.tokenizer.encode(text), end]) for p, text in pairs])
        terms = built.terms
        counts = global_counts(terms, [batch_of(rows, self._policy.device)])
        gradient = GradientSum(built, terms, built.init(), counts)
        self._records = []
        for pack in self._packs(rows):
            self._micro_batch(pack, rows, gradient, before_update=False)
        norm = self._divide_and_clip(gradient)
        _step(self._warm, lr)
        self._begin_step()
        return {k: v for k, v in gradient.metrics().items() if k.startswith("loss/")} | {"grad_norm": Mean(norm, 1)}

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
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        files.save_networks(path, self._networks())
        files.save_optimizer(path / "optimizer.safetensors", self._optimizer, self._trained)
        random_state = {"cpu": torch.get_rng_state()}
        if self._policy.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self._policy.device)
        counters = {"version": self.version, "num_updates": self._num_updates, "reference": self._reference is not None}
        files.save_values(path, "trainer", {**counters, "algorithm": self._state_before_step, "random": random_state})

    def load(self, directory: str | Path) -> int:
        """Go back to what `save` wrote and return its version, which `start` will publish. Raises `CheckpointError` if the
        files are not all there or do not fit the config."""
        path = Path(directory)
        values = files.load_values(path, "trainer")
        if values["reference"]:
            self._reference = Policy(copy.deepcopy(self._policy.model).requires_grad_(False), self._config)
        files.load_networks(path, self._networks())
        files.load_optimizer(path / "optimizer.safetensors", self._optimizer, self._trained)
        self.version, self._num_updates, self._state = values["version"], values["num_updates"], values["algorithm"]
        torch.set_rng_state(values["random"]["cpu"])
        if self._policy.device.type == "cuda":
            torch.cuda.set_rng_state(values["random"]["cuda"], self._policy.device)
        self._optimizer.zero_grad()
        self._begin_step()
        return self.version

    def close(self) -> None:
        """Free the published buffers."""
        self._publisher.close()

    # --- inside a step -------------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._state_before_step = self._loss_state = self._state
        self._groups: list[Group] = []
        self._rows: list[Row] = []
        self._records: list[Mapping[str, Metric]] = [{"tokens/computed": Sum(0.0), "tokens/padding": Sum(0.0)}]
        self._sum = GradientSum(self._algorithm, due(self._algorithm, self._num_updates), self._loss_state, None)

    def _streams(self) -> bool:
        """True if micro-batches may run before the step is complete."""
        config = self._config
        return config.minibatches * config.epochs == 1 and share_a_count(due(self._algorithm, self._num_updates))

    def _packs(self, rows: Sequence[Row], *, balance: bool = True) -> list[Pack]:
        with self._timed("pack"):
            tokens, actions = [row.tokens_T for row in rows], [row.action_T for row in rows]
            if self._config.packing == "rows":
                return packs_of_rows(tokens, actions, budget=self._config.micro_tokens)
            return packs_of_trees(tokens, actions, budget=self._config.micro_tokens, balance=balance)

    def _micro_batch(self, pack: Pack, rows: Sequence[Row], gradient: GradientSum, *, before_update: bool) -> None:
        """Forward and backward of one pack."""
        with self._timed("forward"):
            batch = batch_of([rows[i] for i in pack.members], self._policy.device)
            if self._reference is not None and "logp_reference" not in batch:
                with torch.no_grad():
                    batch = batch.with_columns(logp_reference=self._reference(pack).logp_BT)
            predictions = self._policy(pack)
            if "logp_proximal" in self._algorithm.needs and "logp_proximal" not in batch:
                # A single update starts and ends with this forward pass, so these are the proximal log-probs, to the bit.
                batch = batch.with_columns(logp_proximal=predictions.logp_BT.detach())
            loss = gradient.loss(predictions, batch, before_update=before_update)
        if not torch.isfinite(loss):
            self._diverged("loss", float(loss))
        with self._timed("backward"):
            loss.backward()
        self._records.append({"tokens/computed": Sum(pack.computed), "tokens/padding": Sum(pack.padding)})

    def _minibatches(self) -> None:
        """The step when all of its groups have to be there: several optimiser steps, or terms with different denominators."""
        self._add_fixed_columns()
        config, first = self._config, True
        for epoch in range(config.epochs):
            order = torch.randperm(len(self._groups), generator=_generator(config.seed, self.version, epoch)).tolist()
            for part in range(config.minibatches):
                chosen = set(order[part :: config.minibatches])
                rows = [row for row in self._rows if row.per_row["group"] in chosen]
                terms = due(self._algorithm, self._num_updates)
                packs = self._packs(rows)
                batches = [batch_of([rows[i] for i in pack.members], self._policy.device) for pack in packs]
                gradient = GradientSum(self._algorithm, terms, self._loss_state, global_counts(terms, batches))
                for pack in packs:
                    self._micro_batch(pack, rows, gradient, before_update=first)
                self._apply(gradient)
                self._loss_state, first = self._state, False

    @torch.no_grad()
    def _add_fixed_columns(self) -> None:
        """Log-probs that are the same for all optimiser steps of this batch: those of its first moment and of the reference."""
        policies = {"logp_reference": self._reference}
        if self._config.minibatches * self._config.epochs > 1 and "logp_proximal" in self._algorithm.needs:
            policies["logp_proximal"] = self._policy
        wanted = {name: policy for name, policy in policies.items() if policy is not None}
        for pack in self._packs(self._rows) if wanted else []:
            for name, policy in wanted.items():
                with self._timed("forward"):
                    logp_BT = policy(pack).logp_BT.cpu()
                for logp_T, index in zip(logp_BT, pack.members, strict=True):
                    row = self._rows[index]
                    row.per_token[name] = logp_T[: int(row.action_T.sum())]

    def _apply(self, gradient: GradientSum) -> None:
        """The optimiser step that `gradient` is for, if any term was due."""
        lr = self._config.learning_rate(self._num_updates)
        with self._timed("optimizer"):
            norm = self._divide_and_clip(gradient)
            _step(self._optimizer, lr)
        self._num_updates += 1
        metrics = gradient.metrics() | {"grad_norm": Mean(norm, 1), "lr": Mean(lr, 1)}
        self._records.append(metrics)
        self._fire("optimizer_step", metrics)

    def _divide_and_clip(self, gradient: GradientSum) -> float:
        parameters = list(self._trained.values())
        norm = divide_and_clip(parameters, divisor=gradient.divisor, clip_norm=self._config.clip_norm)
        if not norm < float("inf"):
            self._diverged("gradient norm", norm)
        return norm

    def _diverged(self, what: str, value: float) -> NoReturn:
        self._optimizer.zero_grad()
        saved = "not saved: the trainer has no directory"
        if self._directory is not None:
            directory = self._directory / f"diverged-{self.version}"
            files.save_batch(directory, self._groups, {"what": what, "value": repr(value), "version": self.version})
            saved = f"saved in {directory}"
        raise Diverged(
            f"the {what} of the step after version {self.version} is not finite",
            given=f"{value}; batch {saved}",
            expected="a finite number",
            todo="look at the rewards and log-probs of the batch; a lower trainer.lr often helps",
        )

    def _fire(self, event: str, metrics: Mapping[str, Metric]) -> None:
        if event in self._algorithm.events:
            self._state = self._algorithm.events[event](self._state, metrics)

    def _hold(self, keep: frozenset[int]) -> None:
        for version in keep - self._pinned:
            self._publisher.pin(version)
        for version in self._pinned - keep:
            self._publisher.release(version)
        self._pinned = keep

    def _networks(self) -> dict[str, torch.nn.Module]:
        reference = {} if self._reference is None else {"reference": self._reference.model}
        return {"policy": self._policy.model, **reference}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start


def _adamw(parameters: Iterable[Tensor], config: TrainerConfig) -> torch.optim.AdamW:
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def _step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


def _generator(*seeds: int) -> torch.Generator:
    """A random stream of its own for these numbers, so that nothing needs to be saved to repeat it."""
    return torch.Generator().manual_seed(hash(seeds) % 2**63)
