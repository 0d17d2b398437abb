"""The small protocol behind which a token-generating engine sits: the native PyTorch one, vLLM, or a simulated one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from freerun.types import CachePolicy, Failure, Request, Trajectory


@dataclass(frozen=True, slots=True)
class Finished:
    """One response that ended: sample `sample` of item `item`, or why it failed."""

    item: int
    sample: int
    outcome: Trajectory | Failure


class Engine(Protocol):
    """Continuous batching over slots. One call of `step` decodes one token for every running response.

    `version` is the policy version of the weights in use; the engine itself stamps it on every token it produces.
    """

    version: int

    def submit(self, request: Request) -> None:
        """Queue a group; its prompt is prefilled once. Raises `DataError` if the prompt leaves no room in the context."""
        ...

    def step(self) -> Sequence[Finished]:
        """Admit waiting responses into free slots, decode one token each, return those that ended."""
        ...

    def load(self, version: int, tensors: Mapping[str, Tensor], policy: CachePolicy) -> None:
        """Swap weights between decode steps. With `FINISH` the swap waits until the responses running now have ended;
        responses submitted afterwards start on the new weights."""
        ...

    def pause(self, items: Sequence[int]) -> dict[int, tuple[Trajectory | None, ...]]:
        """Stop these items and return what they have so far, one entry per sample (`None` if nothing was generated yet), in the
        form that `Request.partial` takes to resume them. A finished sample that was already returned is `None` too."""
        ...

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...
