"""Makes data sets in the grades of D4RL from our own SAC: the recipe of arXiv 2004.07219 in miniature, with its reference
returns.

One training run makes all grades of an environment: its replay, two of its policies, and the returns of a random and of the
last policy, between which scores are normalised.

Shapes: T steps of a chunk, N environments, R transitions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from freerun.actors.collector import Collector
from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import sac
from freerun.datasets.base import Episodes, joined
from freerun.datasets.files import write_npz
from freerun.datasets.grades import GRADES, Grade, path_of
from freerun.errors import ConfigError, DataError
from freerun.store.phases import Phase, Plan
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import STORED, Chunk, Mode, Order
from freerun.types import WeightsRef
from freerun.weights import inprocess

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of it that is."""
JUDGED = 10
"""Episodes that say how good a policy is on the way."""
REFERENCE = 100
"""Episodes that say how good the last one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How the data sets of one environment are made."""

    env: GymConfig
    """The environment."""
    steps: int
    """Environment steps of the training run, and updates."""
    size: int
    """Transitions of each data set, but for the replay."""
    algorithm: sac.Config = field(default_factory=lambda: sac.Config(hidden=(128, 128)))
    """The policy's method. Networks are small, so that a robot's data are made in a quarter of an hour on one core."""
    batch: int = 128
    """Rows of an update."""
    start: int = 2_000
    """Random steps before the first update."""
    chunk: int = 16
    """Steps of each of four environments between updates."""
    judge_every: int = 10_000
    """Environment steps between two looks at how good the policy is."""


MAKINGS: Mapping[str, Making] = {
    "pendulum": Making(
        env=GymConfig(id="Pendulum-v1"),
        steps=12_000,
        size=20_000,
        algorithm=sac.Config(actor_lr=1e-3, hidden=(64, 64)),
        start=1_000,
        chunk=8,
        judge_every=500,
    ),
    "hopper": Making(env=GymConfig(id="Hopper-v5"), steps=200_000, size=100_000),
    "halfcheetah": Making(env=GymConfig(id="HalfCheetah-v5"), steps=200_000, size=100_000),
    "walker2d": Making(env=GymConfig(id="Walker2d-v5"), steps=300_000, size=100_000),
    "pointmaze": Making(
        env=GymConfig(
            id="PointMaze_UMazeDense-v3", modules=("gymnasium_robotics",), options={"continuing_task": False}, max_steps=300
        ),
        steps=60_000,
        size=50_000,
    ),
}
"""Environments by name, in the order of what they cost."""


def make(name: str, *, seed: int = 0, progress: Progress = lambda what, share: None) -> list[Grade]:
    """Make all grades of an environment, in the cache. Raises `ConfigError` for an unknown name."""
    if name not in MAKINGS:
        raise ConfigError(
            f"nobody knows how to make data sets of '{name}'", given=name, expected=", ".join(MAKINGS), todo="name one of these"
        )
    for grade, episodes in graded(name, MAKINGS[name], seed=seed, progress=progress).items():
        write_npz(path_of(name, grade), episodes)
    return [Grade(env=name, grade=grade) for grade in GRADES]


@dataclass(frozen=True, slots=True)
class Look:
    """How good the policy of a version was, when so many chunks had been collected."""

    ref: WeightsRef
    chunks: int
    mean: float


def graded(name: str, making: Making, *, seed: int, progress: Progress) -> dict[str, Episodes]:
    """The episodes of every grade."""
    actor, judge, *players = (_actor(making, index, seed) for index in range(5))
    trainer = _trainer(making, actor, seed)
    try:
        chunks, looks, last = _train(making, trainer, actor, judge, progress)
        progress("playing the policies", 0.0)
        first = looks[0].ref
        random = _play(making, players[0], first, "random")
        low = sum(returns := _ended(random)) / len(returns)
        expert_returns = [e.total for e in judge.judge(last, REFERENCE, seed).episodes]
        high = sum(expert_returns) / len(expert_returns)
        if high <= low:
            raise DataError(
                f"SAC learned nothing on {making.env.id}",
                given=f"mean return {high:.1f} after {making.steps} steps, {low:.1f} at random",
                expected="a higher one",
                todo="take more steps, or another seed",
            )
        medium = next((look for look in looks if look.mean >= low + (high - low) / 3.0), looks[-1])
        medium_chunks = _play(making, players[1], medium.ref, "explore")
        progress("playing the policies", 0.5)
        expert_chunks = _play(making, players[2], last, "explore")
    finally:
        for each in (actor, judge, *players):
            each.close()
        trainer.close()
    about = {"env": making.env.id, "scores": [low, high], "made by": f"SAC, {making.steps} steps, seed {seed}"}
    half = [chunks_of[: max(1, len(chunks_of) // 2)] for chunks_of in (medium_chunks, expert_chunks)]
    sets = {
        "random": episodes_of(f"{name}-random", random, about),
        "medium": episodes_of(f"{name}-medium", medium_chunks, about),
        "medium-replay": episodes_of(f"{name}-medium-replay", chunks[: medium.chunks], about),
        "medium-expert": joined(f"{name}-medium-expert", [episodes_of("half", part, about) for part in half]),
        "expert": episodes_of(f"{name}-expert", expert_chunks, about),
    }
    return {grade: sets[grade] for grade in GRADES}


def _actor(making: Making, index: int, seed: int) -> Collector:
    config = ActorConfig(envs=4, picture_frames=0)
    return Collector(making.env, config, making.algorithm, inprocess.subscriber(), index=index, seed=seed)


def _trainer(making: Making, actor: Collector, seed: int) -> ControlTrainer:
    config = ControlTrainerConfig(batch=making.batch, seed=seed)
    phases, replay = [Phase(env_steps=making.steps)], ReplayConfig(capacity=making.steps + 4 * making.chunk)
    return ControlTrainer(making.algorithm, actor.spaces, config, phases, [replay], inprocess.publisher())


def _train(
    making: Making, trainer: ControlTrainer, actor: Collector, judge: Collector, progress: Progress
) -> tuple[list[Chunk], list[Look], WeightsRef]:
    """Train SAC in turns, one update per environment step; everything collected, the policies looked at, and the last one."""
    ref, taken, chunks = trainer.start(), 0, list[Chunk]()
    looks = [Look(ref, 0, -math.inf)]
    while taken < making.steps:
        mode: Mode = "random" if taken < making.start else "explore"
        chunk = actor.collect(Order(item=len(chunks), steps=making.chunk, mode=mode, taken=taken), ref).chunk
        chunks.append(chunk)
        taken += chunk.num_rows
        trainer.accumulate([chunk])
        keep = [look.ref.version for look in looks] + [ref.version]
        ref = trainer.finish_step(keep, Plan(updates=chunk.num_rows if taken > making.start else 0)).ref
        if taken // making.judge_every >= len(looks) or taken >= making.steps:
            episodes = judge.judge(ref, JUDGED, 0).episodes
            looks.append(Look(ref, len(chunks), sum(e.total for e in episodes) / len(episodes)))
        progress(f"training SAC on {making.env.id}, return {looks[-1].mean:.0f}", taken / making.steps)
    return chunks, looks, ref


def _play(making: Making, player: Collector, ref: WeightsRef, mode: Mode) -> list[Chunk]:
    """Episodes of one policy from their beginning, as many transitions as a data set has, or a few more."""
    chunks, rows = list[Chunk](), 0
    while rows < making.size:
        chunks.append(player.collect(Order(item=0, steps=making.chunk, mode=mode), ref).chunk)
        rows += chunks[-1].num_rows
    return chunks


def _ended(chunks: Sequence[Chunk]) -> list[float]:
    return [episode.total for chunk in chunks for episode in chunk.ended]


def episodes_of(name: str, chunks: Sequence[Chunk], about: Mapping[str, Any]) -> Episodes:
    """The chunks of any number of actors as episodes. Those that were still going on are cut there."""
    flat = {key: torch.cat([chunk.columns[key].flatten(0, 1) for chunk in chunks]) for key in STORED if key != "version"}
    order_R = flat["step"].argsort(stable=True)
    order_R = order_R[flat["episode"][order_R].argsort(stable=True)]
    columns = {key: column[order_R] for key, column in flat.items()}
    episode_R = columns["episode"]
    last_R = torch.cat([episode_R[1:] != episode_R[:-1], torch.ones(1, dtype=torch.bool)])
    columns["truncated"] = columns["truncated"] | (last_R & ~columns["terminated"])
    _, counts = torch.unique_consecutive(episode_R, return_counts=True)
    columns["episode"] = torch.repeat_interleave(torch.arange(len(counts)), counts)
    columns["step"] = torch.cat([torch.arange(n, dtype=torch.int32) for n in counts.tolist()])
    if columns["action"].is_floating_point():
        columns["action"] = columns["action"].clamp(-1.0, 1.0)
    return Episodes(name=name, columns=columns, about=about)


def missing(grades: Sequence[Grade]) -> list[str]:
    """Environments whose data sets have to be made first."""
    return sorted({grade.env for grade in grades if not grade.path.is_file()})
