"""How a control run goes: its phases, what a chunk and a step are, how far collecting and learning may run ahead of each
other."""

import math
from dataclasses import dataclass

from freerun.errors import ConfigError
from freerun.store.phases import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSchedule:
    """Phases and limits. With `max_lag` and `ahead` 0 collecting and learning take turns; more of either is asynchronous.
    Raises `ConfigError` for numbers that cannot work."""

    phases: tuple[Phase, ...]
    """What happens, one after another."""
    chunk: int = 32
    """Steps of each environment per order: smaller reacts faster, larger costs fewer messages."""
    chunks: int = 1
    """Where terms read rollouts: chunks per step."""
    max_lag: int = 0
    """Where terms read rollouts: target lag in steps; 0 is on-policy. Slots are (max_lag + 1) * chunks."""
    window: int = 1
    """Where terms read rollouts: how far behind the oldest chunk under way a finished one may be taken."""
    updates: int = 0
    """Where terms read replay: updates per step, after which a version is published; 0 is those that one chunk makes due, and
    100 in a phase without actors."""
    ahead: int = 0
    """Where terms read replay: chunks that may be collected before their turn."""
    lead: float = 0.0
    """Where terms read replay: updates that may be made before they are due."""
    max_age: int | None = None
    """Where terms read replay: versions after which a chunk is given up; none keeps it until it is overwritten."""
    executor_restarts: int = 3
    """How often an actor that died is started anew before the run ends."""
    evaluations: int = 10
    """Evaluations during the run, evenly spread, beside the training."""
    eval_episodes: int = 10
    """Episodes of each."""
    final_eval_episodes: int = 20
    """Episodes of the evaluations before and after the run; 0 makes none."""
    checkpoint_every: int = 0
    """Checkpoint every so many steps; 0 checkpoints at the end and on interruption only."""
    call_deadline: float = 600.0
    """Seconds that any one call of an executor may take; an actor that takes longer counts as dead."""
    stall_deadline: float = 60.0
    """Seconds without any call, after which the run ends and says who waits for whom."""

    def __post_init__(self) -> None:
        rules = {
            "a phase": bool(self.phases),
            "phases of different names": len({p.name for p in self.phases}) == len(self.phases),
            "chunk, chunks and window >= 1": min(self.chunk, self.chunks, self.window) >= 1,
            "nothing negative": min(
                self.max_lag, self.updates, self.ahead, self.lead, self.executor_restarts, self.evaluations, self.max_age or 0
            )
            >= 0,
            "final_eval_episodes, checkpoint_every >= 0": min(self.final_eval_episodes, self.checkpoint_every) >= 0,
            "call_deadline, stall_deadline > 0": min(self.call_deadline, self.stall_deadline) > 0,
            "eval_episodes >= 1, if there are evaluations": self.eval_episodes >= 1 or not self.evaluations,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(
                    "a control run cannot go like this", given=self, expected=rule, todo="correct the section control"
                )


@dataclass(frozen=True, slots=True)
class Work:
    """A phase in whole chunks and steps, for chunks of `rows` transitions."""

    phase: Phase
    chunks: int
    """Chunks to collect."""
    updates: int
    """Updates to make; where terms read rollouts, none that is counted."""
    most: int
    """Updates that may be made while actors collect: as many, or more where `Phase.utd_most` allows it."""
    size: int
    """Chunks before the first update."""
    batch: int
    """Updates of a full step."""
    steps: int
    """Steps of the trainer, at most."""

    @property
    def amount(self) -> int:
        """The work, in environment steps, or updates where there are none."""
        return self.phase.env_steps or self.phase.updates


def work_of(phase: Phase, schedule: EnvSchedule, *, rows: int, rollouts: bool) -> Work:
    """What a phase comes to. Environment steps are rounded up to whole chunks, or whole steps of them."""
    if not phase.env_steps:
        batch = min(schedule.updates or 100, phase.updates)
        return Work(phase, 0, phase.updates, phase.updates, 0, batch, -(-phase.updates // batch))
    chunks = -(-phase.env_steps // rows)
    if rollouts:
        steps = -(-chunks // schedule.chunks)
        return Work(phase, steps * schedule.chunks, 0, 0, 0, 0, steps)
    size = -(-phase.start // rows)
    updates, most = (math.floor(utd * rows * (chunks - size) + 1e-9) for utd in (phase.utd, max(phase.utd, phase.utd_most)))
    batch = max(1, min(updates, schedule.updates or round(phase.utd * rows)))
    return Work(phase, chunks, updates, most, size, batch, -(-most // batch))
