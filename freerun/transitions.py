"""The words of control: what an environment looks like, a step in it, a chunk of steps, and the order for one.

space        what is seen and what can be done: shapes, never a library's own objects
transition   one step: what was seen, done, paid, seen next, and how the episode went on
chunk        the item of control: `T` steps of `N` environments side by side, made by one actor
stream       one environment slot of one actor: its transitions follow one another in time
source       where rows of a batch come from: "rollout" (chunks of this step), or a named storage

Actions lie in [-1, 1] wherever they are continuous; the actor scales them to the environment's own bounds.

Shape suffixes: T steps of a chunk, N environments of an actor, B rows of a batch, A width of a continuous action.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from freerun.types import Batch, Column, Failure

Mode = Literal["explore", "greedy", "random"]
"""How an actor chooses actions: as the algorithm explores, as it would be judged, or uniformly at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spaces:
    """What networks are made for. `actions` is the number of discrete actions, or the width of a continuous one."""

    obs: tuple[int, ...]
    actions: int
    discrete: bool
    pixels: bool = False
    """Observations are bytes: colours, or symbols."""
    largest: int = 255
    """The largest of these: what networks divide them by."""


TRANSITIONS: Mapping[str, Column] = {
    "obs": Column("B...", "what was seen before the action"),
    "action": Column("BA", "what was done: in [-1, 1], or the index of a discrete action [B]"),
    "reward": Column("B", "what was paid; with n-step sampling the discounted sum of up to n rewards"),
    "next_obs": Column(
        "B...", "what was really seen after it, at the end of an episode too; with n-step sampling after the last"
    ),
    "terminated": Column("B", "the episode ended because the task says so: there is no value beyond"),
    "truncated": Column("B", "the episode was cut for another reason (time, failure): there is value beyond, so bootstrap"),
    "discount": Column("B", "what a value at `next_obs` counts: gamma to the number of steps, 0 where terminated"),
    "log_prob": Column("B", "log-prob (density) of the action under the policy that chose it; NaN where nobody knows"),
    "log_prob_start": Column("B", "log-prob of the action under the policy at the start of the update"),
    "version": Column("B", "policy version that chose the action; -1 where no version of this run did"),
    "lag": Column("B", "trainer version at consumption minus `version`"),
    "episode": Column("B", "number of the episode, unique in its source"),
    "step": Column("B", "place of the transition in its episode, from 0"),
    "next_action": Column("BA", "the action that followed, where the episode went on; else zeros"),
    "mc_return": Column("B", "discounted sum of rewards from here to the end of the episode; NaN while that is not known"),
    "values": Column("B", "value of `obs` at the start of the update"),
    "returns": Column("B", "target of the value function, from `prepare`"),
    "advantage": Column("B", "credit of the action, from `prepare`"),
    "weight": Column("B", "importance weight of the row: undoes the bias of prioritised sampling"),
    "row": Column("B", "place of the row in its storage"),
    "source": Column("B", "index of the row's source in the phase's order"),
}
"""Columns that a batch of transitions may have. A new kind of data is a new line here and a producer."""

STORED = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "log_prob", "version", "episode", "step")
"""Columns that every actor records."""


def transitions(columns: Mapping[str, Tensor], *, reader: str = "the trainer") -> Batch:
    """A batch of transitions. Raises `MissingColumn` for a name that `TRANSITIONS` does not define."""
    return Batch(columns, reader=reader, known=TRANSITIONS)


class Episode(NamedTuple):
    """An episode that ended: undiscounted return, steps, and whether the task (not time or failure) ended it."""

    total: float
    length: int
    terminated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Ask an actor for one chunk of `steps` steps. `taken` is the number of environment steps ordered before it in the run,
    for schedules of exploration; `life` counts the deaths of the actor, so that a successor plays other episodes."""

    item: int
    steps: int
    mode: Mode = "explore"
    taken: int = 0
    life: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one actor collected for one order.

    columns   `STORED` ones and those that the algorithm's `act` adds, each [T, N, ...], time first. Row (t + 1, n) follows row
              (t, n) if their episodes are the same; else a new episode began, and (t, n) is terminated or truncated
    actor     number of the actor; (actor, n) is a stream, which goes on in the actor's next chunk
    change    where actors train too (federated training): what that changed in the weights that they were sent
    ended     episodes that ended here, in order
    failures  what failed here: each cost the episode that was under way in its environment
    """

    item: int
    actor: int
    columns: Mapping[str, Tensor]
    oldest_version: int
    ended: tuple[Episode, ...] = ()
    failures: tuple[Failure, ...] = ()
    change: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        steps, envs = self.columns["reward"].shape
        return int(steps * envs)
