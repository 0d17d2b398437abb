"""Which faults there are, when they happen, and a seeded draw of the next one."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

ANY = "any"
"""The moment of a signal from outside, at a random time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`action` done to `target` at `moment`.

    Targets are executors by their name, `controller`, `disk` (as the controller sees it), `verifier` (the reward function) and
    `checkpoint` and `journal` (the files, between two attempts). A moment is `ANY` or one of `traps.POINTS`. A controller
    that is frozen is killed after a while, as `--restarts` does it.
    """

    target: str
    action: str
    moment: str = ANY

    @property
    def names(self) -> set[str]:
        """The processes that it is done to."""
        return set(self.target.split(" and "))

    @property
    def effect(self) -> str:
        """What the run has to do about it: `heal` (start the executors of `names` anew), `end` (say why, and be resumed), or
        `go on`."""
        if self.moment == "shutdown" or self.action in ("interrupt", "full", "read-only", "garbage", "corrupt"):
            return "end"
        if self.action == "error":
            return "go on" if self.target == "verifier" else "end"
        if self.action in ("kill", "freeze"):
            return "heal" if self.names <= {"generator", "rewarder"} else "end"
        return "go on"


WEIGHTS: dict[Fault, int] = {
    Fault("generator", "kill"): 6,
    Fault("generator", "kill", "reading weights"): 4,
    Fault("generator", "kill", "generation"): 3,
    Fault("generator", "kill", "start"): 3,
    Fault("generator", "kill", "shutdown"): 1,
    Fault("generator", "freeze"): 3,
    Fault("generator", "freeze", "reading weights"): 2,
    Fault("generator", "freeze", "generation"): 2,
    Fault("generator", "freeze", "shutdown"): 1,
    Fault("generator", "delay"): 3,
    Fault("generator", "delay", "reading weights"): 3,
    Fault("generator", "error", "generation"): 1,
    Fault("rewarder", "kill"): 4,
    Fault("rewarder", "kill", "scoring"): 3,
    Fault("rewarder", "kill", "start"): 2,
    Fault("rewarder", "kill", "shutdown"): 1,
    Fault("rewarder", "freeze"): 3,
    Fault("rewarder", "freeze", "scoring"): 2,
    Fault("rewarder", "freeze", "shutdown"): 1,
    Fault("rewarder", "delay"): 2,
    Fault("generator and rewarder", "kill"): 3,
    Fault("trainer", "kill"): 4,
    Fault("trainer", "kill", "publication"): 4,
    Fault("trainer", "kill", "checkpoint"): 4,
    Fault("trainer", "kill", "update"): 3,
    Fault("trainer", "kill", "start"): 2,
    Fault("trainer", "kill", "shutdown"): 1,
    Fault("trainer", "freeze"): 2,
    Fault("trainer", "freeze", "publication"): 2,
    Fault("trainer", "freeze", "checkpoint"): 2,
    Fault("trainer", "freeze", "update"): 1,
    Fault("trainer", "freeze", "shutdown"): 1,
    Fault("trainer", "delay", "publication"): 2,
    Fault("trainer", "delay", "checkpoint"): 2,
    Fault("trainer", "error", "update"): 1,
    Fault("generator and trainer", "kill"): 2,
    Fault("controller", "kill"): 4,
    Fault("controller", "kill", "admission"): 3,
    Fault("controller", "kill", "journal"): 3,
    Fault("controller", "kill", "checkpoint"): 5,
    Fault("controller", "kill", "compaction"): 3,
    Fault("controller", "kill", "publication"): 3,
    Fault("controller", "kill", "records"): 2,
    Fault("controller", "kill", "healing"): 2,
    Fault("controller", "kill", "start"): 3,
    Fault("controller", "kill", "shutdown"): 2,
    Fault("controller", "freeze"): 2,
    Fault("controller", "freeze", "admission"): 1,
    Fault("controller", "freeze", "checkpoint"): 1,
    Fault("controller", "freeze", "publication"): 1,
    Fault("controller", "delay"): 3,
    Fault("controller", "interrupt"): 3,
    Fault("disk", "full", "disk"): 3,
    Fault("disk", "read-only", "disk"): 2,
    Fault("disk", "delay", "disk"): 2,
    Fault("verifier", "error", "verifier"): 2,
    Fault("verifier", "hang", "verifier"): 2,
    Fault("verifier", "garbage", "verifier"): 2,
    Fault("verifier", "flood", "verifier"): 1,
    Fault("checkpoint", "corrupt"): 5,
    Fault("journal", "corrupt"): 4,
}
"""Every fault that the harness knows, with how often it is drawn relative to others."""


def drawn(seed: int) -> Iterator[Fault]:
    """Faults without end. The first of a cycle are all of them once, in random order, so that a short run misses none."""
    draw = random.Random(f"{seed}/faults")
    kinds = list(WEIGHTS)
    draw.shuffle(kinds)
    yield from kinds
    while True:
        yield draw.choices(kinds, weights=[WEIGHTS[kind] for kind in kinds])[0]
