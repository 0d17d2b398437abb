"""Networks of control as data: an algorithm names what it needs, `models.control` builds it for the spaces of a run.

Nothing is imported but the standard library, so that an algorithm's file can say what it wants without knowing how it is made.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The layers between an input and a head."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    activation: Literal["relu", "tanh", "silu"] = "relu"
    """What follows each of them."""
    layer_norm: bool = False
    """Normalise each hidden layer before its activation."""
    encoder: Literal["flat", "pixels", "grid", "auto"] = "auto"
    """How an observation becomes a vector: as it is, by the convolutions of Mnih et al. 2015, by those for small grids, or by
    whichever of these its shape asks for."""
    init: Literal["default", "orthogonal"] = "default"
    """Initial weights: PyTorch's own for linear layers, or orthogonal ones with zero biases, as PPO is used to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A distribution over actions: categorical where they are discrete, else Gaussian."""

    body: Body = field(default_factory=Body)
    squash: bool = True
    """Squash samples by tanh into [-1, 1]; without, they are unbounded and the actor clips what it plays."""
    tanh_mean: bool = False
    """Without `squash`: bound the mean by tanh."""
    state_std: bool = True
    """The standard deviation depends on the observation; without, it is one parameter per dimension."""
    log_std: tuple[float, float] = (-5.0, 2.0)
    """Bounds of its logarithm."""
    context: int = 0
    """Width of an input beside the observation."""
    width: int = 0
    """What it chooses, where that is no action of the environment: a vector so wide; 0 is an action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deterministic:
    """One action per observation, in [-1, 1]."""

    body: Body = field(default_factory=Body)
    context: int = 0
    """Width of an input beside the observation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Independent copies of one network, computed together: critics, values, discriminators, dynamics.

    Called with its inputs in order, it gives [members, B, outputs], and [members, B] where `outputs` is 1. Its method `apart`
    takes inputs [members, B, ...], of its own for each member.
    """

    reads: tuple[Literal["obs", "action", "next_obs"], ...] = ("obs", "action")
    """Inputs, put side by side; a discrete action is one-hot."""
    outputs: int | Literal["actions", "obs"] = 1
    """Width of the output; "actions" is one for each discrete action, "obs" one for each number of an observation."""
    members: int = 1
    """Number of copies."""
    body: Body = field(default_factory=Body)
    context: int = 0
    """Width of a last input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One trained number, such as a log-temperature. Called with nothing, it gives it."""

    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Recorded actions, found by what is near. Called with observations and actions, it gives the action [B, A] of the recorded
    step that is nearest to `(obs_scale * obs, action)`. Nothing of it is trained; the trainer fills it with a data set."""

    source: str = "dataset"
    """Name of the data set."""
    obs_scale: float = 1.0
    """How much an observation, normalised if the run normalises, counts beside an action."""
    most: int = 100_000
    """Steps that are kept: a search takes long in millions, above all far from all of them."""


Network: TypeAlias = Policy | Deterministic | Ensemble | Scalar | Neighbours
