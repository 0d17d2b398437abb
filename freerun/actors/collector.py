"""The environment worker as an executor: orders and a weights reference in, chunks of transitions out.

Shapes: T steps of a chunk, N environments, K of them, A width of a continuous action.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freerun.actors.environment import ActorConfig, EnvConfig
from freerun.actors.film import film
from freerun.actors.fleet import Fleet, Happened, seed_from
from freerun.algorithms.control_base import Ask, ControlConfig
from freerun.models import control as models
from freerun.transitions import Chunk, Episode, Mode, Order
from freerun.types import Failure, Metric, WeightsRef
from freerun.weights.channel import Subscriber

LIFE, ACTOR, PLACE = 54, 42, 28
"""Where lives, actors and environments begin in the bits of an episode's number in the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectReport:
    """One chunk, and what it took. `version` is that of the weights in use; `metrics` are of training that went on here."""

    chunk: Chunk
    version: int
    seconds: float
    swap_seconds: float
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """Episodes played to judge the policy of `version`."""

    episodes: tuple[Episode, ...]
    failures: tuple[Failure, ...]
    version: int
    seconds: float


class Collector:
    """Owns environments and the networks that act, `policy`. Until the first reference arrives it holds the initial weights,
    which the seed fixes, as version 0. Episodes to judge the policy are played in environments of their own.

    What it does follows from the arguments of its calls alone, as long as environments follow from seed and actions.
    """

    def __init__(
        self,
        env: EnvConfig,
        config: ActorConfig,
        algorithm: ControlConfig,
        subscriber: Callable[[], Subscriber],
        *,
        index: int = 0,
        seed: int = 0,
        normalise: bool = False,
    ) -> None:
        self._env, self._config, self._index, self._seed = env, config, index, seed
        self._algorithm = algorithm.build()
        self._subscriber = subscriber()
        self._life = 0
        self._fleet = Fleet(env.build, config.envs, config, self._seed_of)
        self._fresh = True
        self._judges: Fleet | None = None
        spaces = self._fleet.spaces
        self._algorithm.check(spaces)
        self.spaces = spaces
        acting = {name: self._algorithm.networks[name] for name in self._algorithm.acts_with}
        self.policy = {n: m.eval() for n, m in models.build(acting, spaces, seed=seed, normalise=normalise).items()}
        self._weights = {f"{n}.{key}": t for n, m in self.policy.items() for key, t in m.state_dict().items()}
        self._noise = torch.Generator().manual_seed(seed_from(seed, index, "noise"))
        self.version = 0

    def _seed_of(self, env: int, number: int) -> int:
        return seed_from(self._seed, self._index, self._life, env, number)

    # --- collecting ----------------------------------------------------------------------------------------------------------

    def collect(self, order: Order, ref: WeightsRef | None) -> CollectReport:
        """Adopt `ref` if it is newer, and play `order.steps` steps in each environment with it. Episodes go on from chunk to
        chunk. An environment that fails costs its episode: what was played of it stays, cut off at its last step."""
        began = time.perf_counter()
        self._adopt(ref)
        swapped = time.perf_counter() - began
        failures: list[Failure] = []
        if order.life != self._life:
            self._live_again(order.life)
        if self._fresh:
            failures += self._fleet.reset()
            self._fresh = False
        columns, ended = self._play(order, failures)
        chunk = Chunk(
            item=order.item,
            actor=self._index,
            columns=columns,
            oldest_version=self.version,
            ended=tuple(ended),
            failures=tuple(failures),
        )
        return CollectReport(chunk=chunk, version=self.version, seconds=time.perf_counter() - began, swap_seconds=swapped)

    def _live_again(self, life: int) -> None:
        """This is the successor of an actor that died: other episodes, other noise."""
        self._life = life
        self._noise.manual_seed(seed_from(self._seed, self._index, life, "noise"))

    def _play(self, order: Order, failures: list[Failure]) -> tuple[dict[str, Tensor], list[Episode]]:
        fleet, steps, envs = self._fleet, order.steps, len(self._fleet.slots)
        rows = _Rows(steps, envs, fleet)
        ended: list[Episode] = []
        for t in range(steps):
            left: Sequence[int] = range(envs)
            while left:
                index = slice(None) if len(left) == envs else list(left)
                rows.obs[t, index] = fleet.obs[index]
                acted = self._act(rows.obs[t, index], order.mode, order.taken + t * envs)
                rows.put_acted(t, index, acted)
                happened = fleet.step(rows.action[t, index], left)
                rows.put_happened(t, index, happened)
                ended += [episode for _, episode in happened.ended]
                failures += happened.failures
                rows.cut(t, happened)
                left = happened.undone
        envs_N = np.arange(envs, dtype=np.int64)
        base_N = (self._life << LIFE) | (self._index << ACTOR) | (envs_N << PLACE)
        return rows.columns(base_N, self.version), ended

    @torch.inference_mode()
    def _act(self, obs_K: np.ndarray, mode: Mode, taken: int) -> Mapping[str, Tensor]:
        """Actions for these observations, their log-probs, and what else the algorithm records of them."""
        spaces = self._fleet.spaces
        if mode == "random":
            return self._at_random(len(obs_K))
        return self._algorithm.act(self.policy, torch.from_numpy(obs_K), Ask(mode, taken, spaces), self._noise)

    def _at_random(self, num: int) -> Mapping[str, Tensor]:
        spaces = self._fleet.spaces
        if spaces.discrete:
            action_N = torch.randint(spaces.actions, (num,), generator=self._noise)
            return {"action": action_N, "log_prob": torch.full((num,), -math.log(spaces.actions))}
        action_NA = torch.rand(num, spaces.actions, generator=self._noise) * 2.0 - 1.0
        return {"action": action_NA, "log_prob": torch.full((num,), -spaces.actions * math.log(2.0))}

    def _adopt(self, ref: WeightsRef | None) -> None:
        if ref is None or ref.version <= self.version:
            return
        tensors = self._subscriber.adopt(ref)
        with torch.no_grad():
            for name, own in self._weights.items():
                own.copy_(tensors[name])
        self.version = ref.version

    # --- judging -------------------------------------------------------------------------------------------------------------

    def judge(self, ref: WeightsRef, episodes: int, seed: int) -> TrialReport:
        """Play `episodes` episodes with the actions that the policy of `ref` is judged by. Their seeds follow from `seed`. A
        failed episode is played again, with another seed."""
        began = time.perf_counter()
        self._adopt(ref)
        num = min(episodes, self._config.envs)
        if self._judges is None or len(self._judges.slots) != num:
            if self._judges is not None:
                self._judges.close()
            self._judges = Fleet(self._env.build, num, self._config, lambda env, number: 0)
        fleet = self._judges
        fleet.restart(lambda env, number: seed_from("judge", seed, env, number))
        failures = fleet.reset()
        quota = [len(range(i, episodes, num)) for i in range(num)]
        played: list[Episode] = []
        while left := [i for i in range(num) if quota[i]]:
            acted = self._act(fleet.obs[left], "greedy", 0)
            happened = fleet.step(acted["action"].numpy(), left)
            failures += happened.failures
            for i, episode in happened.ended:
                quota[i] -= 1
                played.append(episode)
        return TrialReport(
            episodes=tuple(played), failures=tuple(failures), version=self.version, seconds=time.perf_counter() - began
        )

    def film(self, ref: WeightsRef, path: str, seed: int) -> str:
        """Write a moving picture of one such episode to `path`; what kept it from that, or nothing."""
        self._adopt(ref)

        def act(obs: np.ndarray) -> np.ndarray:
            return self._act(obs[None], "greedy", 0)["action"].numpy()[0]

        return film(self._env, act, Path(path), seed=seed_from("film", seed), frames=self._config.picture_frames)

    # --- checkpoints ---------------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Everything that going on needs, JSON-able; but for the weights, which come with the next order."""
        return {
            "life": self._life,
            "fleet": None if self._fresh else self._fleet.state(),
            "noise": self._noise.get_state().tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> tuple[Failure, ...]:
        """Undo `save`; see `Fleet.load` for what is returned."""
        self._life, self._fresh = state["life"], state["fleet"] is None
        self._noise.set_state(torch.tensor(state["noise"], dtype=torch.uint8))
        return () if self._fresh else tuple(self._fleet.load(state["fleet"]))

    def close(self) -> None:
        """Close the environments and let go of the weights."""
        self._fleet.close()
        if self._judges is not None:
            self._judges.close()
        self._subscriber.close()


class _Rows:
    """The arrays of a chunk while it is being played."""

    def __init__(self, steps: int, envs: int, fleet: Fleet) -> None:
        spaces, shape = fleet.spaces, (steps, envs)
        self.obs = np.empty((*shape, *spaces.obs), dtype=fleet.obs.dtype)
        self.next_obs = np.empty_like(self.obs)
        self.action = np.empty(shape, np.int64) if spaces.discrete else np.empty((*shape, spaces.actions), np.float32)
        self.reward, self.log_prob = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.terminated, self.truncated = np.empty(shape, bool), np.empty(shape, bool)
        self.number, self.step = np.empty(shape, np.int64), np.empty(shape, np.int32)
        self.more: dict[str, np.ndarray] = {}

    def put_acted(self, t: int, index: Any, acted: Mapping[str, Tensor]) -> None:
        self.action[t, index], self.log_prob[t, index] = acted["action"].numpy(), acted["log_prob"].numpy()
        for name, value in acted.items():
            if name not in ("action", "log_prob"):
                array = value.numpy()
                if name not in self.more:
                    self.more[name] = np.zeros((*self.reward.shape, *array.shape[1:]), array.dtype)
                self.more[name][t, index] = array

    def put_happened(self, t: int, index: Any, happened: Happened) -> None:
        self.next_obs[t, index], self.reward[t, index] = happened.next_obs, happened.reward
        self.terminated[t, index], self.truncated[t, index] = happened.terminated, happened.truncated
        self.number[t, index], self.step[t, index] = happened.number, happened.step

    def cut(self, t: int, happened: Happened) -> None:
        """Episodes that a failure ended at step `t` were cut after the step before."""
        for i in happened.undone:
            if t and self.number[t - 1, i] == self.number[t, i]:
                self.truncated[t - 1, i] = True

    def columns(self, base_N: np.ndarray, version: int) -> dict[str, Tensor]:
        arrays = {
            "obs": self.obs,
            "action": self.action,
            "reward": self.reward,
            "next_obs": self.next_obs,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "log_prob": self.log_prob,
            "version": np.full(self.reward.shape, version, np.int32),
            "episode": base_N | self.number,
            "step": self.step,
            **self.more,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
