"""The token generator as an executor: requests and a weights reference in, finished responses out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from freerun.actors.engine import Finished
from freerun.actors.native import NativeEngine
from freerun.actors.paths import layers, verified
from freerun.errors import ConfigError, DataError
from freerun.models.base import ModelConfig
from freerun.types import CachePolicy, Failure, FailureKind, Request, Trajectory, WeightsRef
from freerun.weights.channel import Subscriber


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """How responses are generated."""

    slots: int = 0
    """Responses that run at once; 0 lets the run choose, so that every admitted response has a slot."""
    max_context: int = 0
    """Most tokens of prompt and response together; 0 takes the model's own context."""
    cache_policy: CachePolicy = CachePolicy.KEEP
    """What happens to running responses when new weights arrive."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights, keys and values."""
    device: str = "cpu"
    """Torch device."""
    prefill_tokens: int = 2048
    """Most prompt tokens of one forward pass: bounds its memory, not the length of a prompt."""
    share_prefix: bool = True
    """Compute what prompts have in common at their start once per weights version."""
    fast: bool = True
    """Use the short forward written for Llama-like models where it applies, instead of the model's own."""
    routing: bool = False
    """Record which experts each token goes to. A run does so where its algorithm replays that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorReport:
    """What one call of `advance` did. `version` is that of the weights in use; with `FINISH` it can trail the reference."""

    finished: tuple[Finished, ...]
    version: int
    running: int
    waiting: int
    tokens: int
    """Response tokens produced."""
    prefill_tokens: int
    """Prompt tokens, and with `RECOMPUTE` response tokens, that went through the model to fill keys and values."""
    seconds: float
    """Time spent in this call."""
    swap_seconds: float
    """Part of it that went into adopting new weights."""


class GeneratorExecutor:
    """Owns a model and an engine. Until the first reference arrives it holds the model's own weights, as version 0.

    What it does follows from the arguments of its calls alone, so a recorded order of calls replays bit for bit.
    """

    def __init__(self, model: ModelConfig, config: GeneratorConfig, subscriber: Callable[[], Subscriber]) -> None:
        if config.slots < 1:
            raise ConfigError(
                "a generator needs slots",
                given=f"slots = {config.slots}",
                expected="at least 1",
                todo="set generator.slots, or leave it 0 in a recipe, where the run chooses",
            )
        built = model.build(dtype=config.dtype, device=config.device)
        if config.max_context > built.context:
            raise ConfigError(
                "generator.max_context is larger than the model's context",
                given=config.max_context,
                expected=f"at most {built.context}",
                todo="lower it, or set it to 0 to take the model's",
            )
        self._policy = config.cache_policy
        self._subscriber = subscriber()
        self._adopted: int | None = None
        self.engine = NativeEngine(
            built.model,
            verified(built.model, fast=config.fast, routing=config.routing),
            num_layers=layers(built.model),
            encode=built.encode,
            decode=built.decode,
            eos=built.eos,
            slots=config.slots,
            max_context=config.max_context or built.context,
            prefill_tokens=config.prefill_tokens,
            share_prefix=config.share_prefix,
            policy=config.cache_policy,
        )

    def advance(self, requests: Sequence[Request], ref: WeightsRef | None, steps: int) -> GeneratorReport:
        """Adopt `ref` if it is newer than the last, queue `requests`, decode up to `steps` steps, return what ended.

        Requests of the same call as a `ref` start on its weights. A request that cannot run (its prompt is too long, say) gives
        a `Failure` for each of its samples and harms no other. Fewer steps are done if nothing is left to do.
        """
        began = time.perf_counter()
        generated, prefilled = self.engine.generated, self.engine.prefilled
        if ref is not None and (self._adopted is None or ref.version > self._adopted):
            self.engine.load(ref.version, self._subscriber.adopt(ref), self._policy)
            self._adopted = ref.version
        swapped = time.perf_counter() - began
        finished: list[Finished] = []
        for request in requests:
            try:
                self.engine.submit(request)
            except DataError as error:
                failure = Failure(FailureKind.MODEL, "generator", str(error))
                finished += [Finished(request.item, sample, failure) for sample in range(request.num_samples)]
        for _ in range(steps):
            if not (self.engine.num_running or self.engine.num_waiting):
                break
            finished += self.engine.step()
        return GeneratorReport(
            finished=tuple(finished),
            version=self.engine.version,
            running=self.engine.num_running,
            waiting=self.engine.num_waiting,
            tokens=self.engine.generated - generated,
            prefill_tokens=self.engine.prefilled - prefilled,
            seconds=time.perf_counter() - began,
            swap_seconds=swapped,
        )

    def pause(self, items: Sequence[int]) -> dict[int, tuple[Trajectory | None, ...]]:
        """Stop these items and return their samples so far, to be resumed through `Request.partial`."""
        return self.engine.pause(items)

    def close(self) -> None:
        """Let go of the weights."""
        self._subscriber.close()
