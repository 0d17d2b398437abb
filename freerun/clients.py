"""The executors of federated training: clients that collect and train, a server that adds up what that changed.

A client is an actor with a trainer of its own. For each order it adopts the server's weights, collects a chunk with them, makes
the updates that the chunk makes due, and sends what these changed; its transitions, its replay and its optimisers stay where
they are. The server publishes all networks, targets included.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from freerun.actors.collector import Collector, CollectReport
from freerun.actors.environment import ActorConfig
from freerun.algorithms.control_base import ControlConfig
from freerun.ops.federated import aggregated, change
from freerun.recipes.control_base import Federation
from freerun.store.phases import Phase, Plan
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, SourceConfig
from freerun.trainer.reports import AccumulateReport, StepReport
from freerun.transitions import Chunk, Order
from freerun.types import Max, Mean, Metric, Sum, WeightsRef
from freerun.weights.channel import Subscriber


class Client(Collector):
    """Client number `index` of a federation, in its only phase. A checkpoint keeps its episodes under way, but neither its
    replay nor its optimisers: they begin anew."""

    def __init__(
        self,
        federation: Federation,
        config: ActorConfig,
        algorithm: ControlConfig,
        subscriber: Callable[[], Subscriber],
        *,
        index: int,
        seed: int,
        trainer: ControlTrainerConfig,
        phase: Phase,
        sources: Sequence[SourceConfig],
    ) -> None:
        own = federation.clients[index]
        super().__init__(own.env, config, algorithm, subscriber, index=index, seed=seed)
        self._seconds, self._phase = own.seconds, phase
        alone = replace(trainer, seed=seed + 1 + index)
        self._trainer = ControlTrainer(algorithm, self.spaces, alone, [phase], sources, Unpublished)
        self._sent: Mapping[str, Tensor] = {}

    def collect(self, order: Order, ref: WeightsRef | None) -> CollectReport:
        """See `Collector`. The chunk has the change that training on it and on what came before made, and no column but the
        rewards: nothing else of an episode leaves the client."""
        began = time.perf_counter()
        report = super().collect(order, ref)
        self._trainer.set_weights(self._sent, report.version)
        self._trainer.accumulate([report.chunk])
        due = round(self._phase.utd * report.chunk.num_rows) if order.taken >= self._phase.start else 0
        trained = self._trainer.finish_step((), Plan(updates=due))
        chunk = replace(
            report.chunk,
            columns={"reward": report.chunk.columns["reward"]},
            change=change(self._trainer.weights(), self._sent),
        )
        metrics = {**trained.metrics, "time/train": Sum(sum(trained.seconds.values()))}
        self._wait_out(began)
        return replace(report, chunk=chunk, seconds=time.perf_counter() - began, metrics=metrics)

    def _wait_out(self, began: float) -> None:
        """Work that began then takes the client's seconds at least."""
        time.sleep(max(0.0, began + self._seconds - time.perf_counter()))

    def _adopt(self, ref: WeightsRef | None) -> None:
        if ref is not None and (ref.version > self.version or not self._sent):
            self._sent = {name: tensor.clone() for name, tensor in self._subscriber.adopt(ref).items()}
            super()._adopt(ref)

    def close(self) -> None:
        self._trainer.close()
        super().close()


class Unpublished:
    """What a client's trainer publishes to: nobody reads it, and a version may come more than once."""

    def publish(self, version: int, tensors: Mapping[str, Tensor]) -> WeightsRef:
        return WeightsRef(version=version, transport="none", address="", manifest={}, num_bytes=0)

    def pin(self, version: int) -> None:
        """Nothing is held."""

    def release(self, version: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class Server(ControlTrainer):
    """The trainer of a federation: a step adds up the changes of one round."""

    def __init__(self, federation: Federation, *args: Any) -> None:
        super().__init__(*args)
        self._lr, self._works = federation.lr, list[Chunk]()
        self.shares = federation.shares
        """The weight of each client's change."""

    def accumulate(self, chunks: Sequence[Chunk]) -> AccumulateReport:
        """Take what clients changed, for this step."""
        self._works += chunks
        return AccumulateReport(len(self._works), 0)

    def finish_step(self, keep: Iterable[int] = (), plan: Plan | None = None) -> StepReport:
        """Add the round up and publish version v + 1."""
        weights = [self.shares[work.actor] for work in self._works]
        made = aggregated(self.weights(), [work.change for work in self._works], weights, lr=self._lr)
        lags, self._works = [self.version - work.oldest_version for work in self._works], []
        self.set_weights(made, self.version + 1)
        self._hold(frozenset(keep))
        metrics: dict[str, Metric] = {"lag/mean": Mean(sum(lags), len(lags)), "lag/max": Max(max(lags))}
        return StepReport(self.version, self.start(), metrics, {})

    def _published(self) -> dict[str, Tensor]:
        return self._updater.weights()


class Beat:
    """An executor that waits: it tells a program when a round is over that ends by time."""

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)
