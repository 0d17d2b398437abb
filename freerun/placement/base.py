"""Where executors run: one thin interface, two implementations (`inline`, `monarch`). Nothing above names either.

An executor is a plain Python object whose public methods are called by name with picklable arguments. Its methods may be sync
or async; at most one *sync* call runs at a time, async calls may overlap. Every wait has a deadline and a name.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec:
    """How to make one executor. `factory(*args, **kwargs)` is called where it will live; all three must be picklable.

    `cores` are the CPU ids it may use (empty: no pinning); `threads` the torch and OpenMP threads it may start.
    """

    name: str
    factory: Callable[..., Any]
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    threads: int = 1


class Handle(Protocol):
    """The controller's end of one executor."""

    name: str

    async def call(self, method: str, *args: Any, deadline: float, what: str = "", **kwargs: Any) -> Any:
        """Run `method` there and return its result.

        `deadline` is seconds; `what` names the wait in a stall report. Raises `DeadlineExceeded`, `ExecutorDied` (the process
        is gone) or `ExecutorFailed` (the method raised something that is not a `FreerunError`; those arrive as themselves).
        """
        ...

    def stream(self, method: str, *args: Any, deadline: float, what: str = "") -> AsyncIterator[Any]:
        """Iterate over what the executor's async generator `method` yields; `deadline` holds for each element."""
        ...


class Death(NamedTuple):
    """That the executor `name` died, and how: "process 4711 ended, killed by SIGKILL"."""

    name: str
    how: str


class Placement(Protocol):
    """Spawns executors and notices their deaths."""

    async def spawn(self, specs: Sequence[ExecutorSpec]) -> Mapping[str, Handle]:
        """Start all of `specs`, beside those that run already; returns handles by name once every constructor has returned. If
        one raises, all of `specs` are stopped and its error is raised here."""
        ...

    async def respawn(self, name: str) -> Handle:
        """Start the executor `name`, which died, anew as it was first specified. Its old handle stays dead."""
        ...

    async def retire(self, name: str) -> None:
        """End the executor `name`, dead or alive, and forget it: its name may be given again."""
        ...

    def failures(self) -> AsyncIterator[Death]:
        """Yield the death of each executor that died, within seconds, each once."""
        ...

    async def stop(self, deadline: float = 10.0) -> None:
        """End every executor that this placement started. Nothing outlives it: what does not end by `deadline` is killed."""
        ...

    async def dump_stacks(self, directory: Path) -> list[Path]:
        """Have every executor write what its threads are doing into `directory`, even one that hangs; the files written."""
        ...

    def waits(self) -> list[tuple[str, str, float]]:
        """Open waits as (executor, what, seconds so far), for stall reports."""
        ...
