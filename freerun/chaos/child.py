"""`freerun` with traps: `python -m freerun.chaos.child WORDS` does what `freerun WORDS` does, until it is ordered to fail."""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from freerun import cli, launch
from freerun.chaos import traps
from freerun.placement.base import ExecutorSpec


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


def main() -> None:
    """Lay the traps of the controller, and have those of executors laid where they live."""
    traps.lay("controller", "disk")
    plain: Callable[..., Sequence[ExecutorSpec]] = launch.executors

    def executors(*args: Any, **kwargs: Any) -> Sequence[ExecutorSpec]:
        return trapped(plain(*args, **kwargs))

    launch.executors = executors  # type: ignore[assignment]
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
