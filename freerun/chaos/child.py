"""`freerun` with traps: does what it is asked to until it is ordered to fail."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from freerun import launch
from freerun.chaos import traps
from freerun.placement.base import ExecutorSpec
from freerun.placement.monarch_nursery import Nursery


class Borrowed:
    """A nursery that outlives the controller, so that the next one need not wait for its imports."""

    alive, groups = True, ()

    def __init__(self, nursery: Nursery, modules: tuple[str, ...]) -> None:
        self._nursery = nursery

    def wait(self) -> bool:
        return True

    def command(self) -> tuple[str, list[str]]:
        """As that of the one that it is."""
        return self._nursery.command()

    def close(self) -> None:
        """It is used again."""


def trapped(specs: Sequence[ExecutorSpec]) -> Sequence[ExecutorSpec]:
    """The same executors, with the traps of their role in their processes."""
    return [
        replace(
            spec,
            factory=functools.partial(traps.made, spec.name.partition("-")[0], spec.factory),
            args=(traps.BadTask(spec.args[0]), *spec.args[1:]) if spec.name == "rewarder" else spec.args,
        )
        for spec in specs
    ]


def hurt(words: Sequence[str], nursery: Nursery) -> None:
    """`freerun WORDS`, in this process, which has to be a child's. The traps of the controller are laid here, and those of
    executors where they live; these are forked from `nursery`. Ends with `SystemExit`."""
    from freerun import cli
    from freerun.placement import monarch

    monarch.Nursery = functools.partial(Borrowed, nursery)  # type: ignore[assignment,misc]
    traps.lay("controller", "disk")
    plain: Callable[..., Sequence[ExecutorSpec]] = launch.executors

    def executors(*args: Any, **kwargs: Any) -> Sequence[ExecutorSpec]:
        return trapped(plain(*args, **kwargs))

    launch.executors = executors  # type: ignore[assignment]
    try:
        cli.main(words)
    finally:
        monarch._shut_down()  # as at the end of a program; what else would happen there is the parent's
