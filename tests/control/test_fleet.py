"""Environments side by side: episodes follow from seeds and actions, ends keep what was really seen, and an environment that
raises or hangs costs its own episode and nothing else."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from freerun.actors.collector import Collector
from freerun.actors.environment import ActorConfig, Step
from freerun.actors.fleet import Fleet, seed_from
from freerun.algorithms.control import dqn, ppo
from freerun.errors import AllFailed, ConfigError, DataError
from freerun.transitions import Order, Spaces
from freerun.types import FailureKind
from freerun.weights import inprocess

LENGTH = 4
"""Steps of an episode, unless a test says otherwise."""


class Counting:
    """Sees its seed and how many steps it took; pays the action. `script` may do anything in the call of a number."""

    spaces = Spaces(obs=(2,), actions=3, discrete=True)

    def __init__(self, world: "World") -> None:
        self._world, self._seed, self._steps, self.closed = world, 0, 0, False
        world.made.append(self)

    def reset(self, seed: int) -> np.ndarray:
        self._world.called(self)
        self._seed, self._steps = seed % 1000, 0
        return self._seen()

    def step(self, action: np.ndarray) -> Step:
        self._world.called(self)
        self._steps += 1
        over = self._steps == self._world.length
        return Step(self._seen(), float(action), over and not self._world.cuts, over and self._world.cuts)

    def _seen(self) -> np.ndarray:
        return np.array([self._seed, self._steps], np.float32)

    def picture(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """Builds `Counting`s. `script` maps the number of a call, over all environments, to what it does first."""

    length: int = LENGTH
    cuts: bool = False
    script: dict[int, Callable[[], None]] = field(default_factory=dict)
    made: list[Counting] = field(default_factory=list)
    calls: int = 0

    def build(self, *, picture: bool = False) -> Counting:
        return Counting(self)

    def called(self, env: Counting) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number in self.script:
            self.script[number]()


def fail() -> None:
    raise RuntimeError("simulator crashed")


def fleet(world: World, num: int = 2, **settings: object) -> Fleet:
    made = Fleet(world.build, num, ActorConfig(**settings), lambda env, number: 10 * env + number)
    assert made.reset() == []
    return made


def acts(*values: int) -> np.ndarray:
    return np.array(values)


# --- episodes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [False, True])
def test_the_last_step_shows_what_was_really_seen_and_the_next_begins_a_new_episode(cuts) -> None:
    envs = fleet(World(length=2, cuts=cuts))
    envs.step(acts(1, 0))
    last = envs.step(acts(2, 0))
    assert last.next_obs.tolist() == [[0, 2], [10, 2]]
    assert (last.terminated.tolist(), last.truncated.tolist()) == ([not cuts] * 2, [cuts] * 2)
    assert [(i, e.total, e.length, e.terminated) for i, e in last.ended] == [(0, 3.0, 2, not cuts), (1, 0.0, 2, not cuts)]
    assert envs.obs.tolist() == [[1, 0], [11, 0]]
    after = envs.step(acts(0, 0))
    assert (after.number.tolist(), after.step.tolist()) == ([1, 1], [0, 0])


def test_an_environment_that_raises_loses_its_episode_and_the_others_keep_theirs() -> None:
    world = World()
    world.script[4] = fail  # two resets, one step of each, then the first's second step
    envs = fleet(world)
    envs.step(acts(1, 1))
    happened = envs.step(acts(1, 1))
    assert happened.undone == [0]
    assert [(f.kind, f.message) for f in happened.failures] == [(FailureKind.ENVIRONMENT, "RuntimeError: simulator crashed")]
    assert happened.next_obs[1].tolist() == [10, 2]
    assert world.made[0].closed
    assert not world.made[1].closed
    assert envs.obs.tolist() == [[1, 0], [10, 2]]


def test_a_reset_that_raises_is_tried_again_with_the_next_seed() -> None:
    world = World(length=1)
    world.script[4] = fail  # two resets, two steps, the first reset after them
    envs = fleet(world)
    happened = envs.step(acts(0, 0))
    assert len(happened.failures) == 1
    assert happened.undone == []
    assert envs.obs.tolist() == [[2, 0], [11, 0]]


def test_an_environment_that_always_fails_ends_the_run_with_its_last_failure() -> None:
    world = World()
    envs = fleet(world, 1, retries=2)
    world.script |= dict.fromkeys(range(1, 9), fail)
    with pytest.raises(AllFailed, match="simulator crashed"):
        envs.step(acts(0))


def test_a_step_that_succeeds_forgives_the_failures_before_it() -> None:
    world = World(length=100)
    envs = fleet(world, 1, retries=1)
    for number in range(1, 40, 3):  # fails, begins again, steps
        world.script[number] = fail
        assert envs.step(acts(0)).undone == [0]
        assert envs.step(acts(0)).undone == []


def test_an_environment_that_hangs_is_given_up_after_the_deadline_and_replaced() -> None:
    world, release = World(), threading.Event()
    world.script[4] = release.wait
    envs = fleet(world, deadline=0.2)
    envs.step(acts(1, 1))
    happened = envs.step(acts(1, 1))
    assert happened.undone == [0]
    assert happened.failures[0].kind is FailureKind.TIMEOUT
    # The other one, which waited for the same thread, made its step.
    assert happened.next_obs[1].tolist() == [10, 2]
    calls = world.calls
    release.set()
    assert envs.step(acts(1, 1)).undone == []
    assert world.calls == calls + 2, "the thread that hung goes on with calls that are not its own any more"
    envs.close()


SEEN = np.zeros(2, np.float32)
GARBAGE = {
    "a NoneType": None,
    "a tuple": (SEEN, 0.0, False, False, {}),
    "as observation": Step(None, 0.0, False, False),
    "float32 of shape \\(\\)": Step(np.zeros((), np.float32), 0.0, False, False),
    "float32 of shape \\(1000000,\\)": Step(np.zeros(1_000_000, np.float32), 0.0, False, False),
    "object of shape": Step(np.array([None, None]), 0.0, False, False),
    "not finite": Step(np.array([0.0, np.nan]), 0.0, False, False),
    "nan as reward": Step(SEEN, float("nan"), False, False),
    "inf as reward": Step(SEEN, float("inf"), True, False),
    "'1' as reward": Step(SEEN, "1", False, False),
}


@pytest.mark.parametrize("settings", [{}, {"workers": 2, "deadline": 60.0}])
@pytest.mark.parametrize("said", GARBAGE)
def test_an_environment_that_returns_garbage_ends_the_run_by_name_at_once(said, settings) -> None:
    world = World()
    envs = fleet(world, **settings)
    envs.step(acts(1, 1))
    world.made[1].step = lambda action: GARBAGE[said]
    with pytest.raises(DataError, match=f"environment 1 returned(.|\n)*{said}(.|\n)*episode of seed 10 after 1 steps"):
        envs.step(acts(1, 1))
    envs.close()


@pytest.mark.parametrize("seen", [None, np.zeros(3, np.float32), np.array([np.inf, 0.0]), (SEEN, {})])
def test_a_reset_that_returns_garbage_ends_the_run_by_name(seen) -> None:
    world = World()
    made = Fleet(world.build, 2, ActorConfig(), lambda env, number: 10 * env + number)
    world.made[1].reset = lambda seed: seen
    with pytest.raises(DataError, match=r"environment 1 returned(.|\n)*episode of seed 10 after 0 steps"):
        made.reset()


@pytest.mark.parametrize("settings", [{}, {"workers": 3, "deadline": 60.0}])
def test_what_an_environment_says_too_much_when_it_fails_is_cut(settings) -> None:
    def flood() -> None:
        raise RuntimeError("x" * (1 << 20))

    world = World()
    world.script[4] = flood
    envs = fleet(world, **settings)
    envs.step(acts(1, 1))
    (failure,) = envs.step(acts(1, 1)).failures
    assert failure.message.startswith("RuntimeError: xxx") and len(failure.message) < 1100
    envs.close()


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"workers": 3, "deadline": 60.0}])
def test_threads_change_nothing_about_what_happens(settings) -> None:
    envs = fleet(World(length=3), 5, **settings)
    seen = []
    for t in range(7):
        happened = envs.step(np.arange(5) % 3)
        seen.append((happened.next_obs.tolist(), happened.reward.tolist(), happened.number.tolist(), t))
    plain = fleet(World(length=3), 5)
    for next_obs, reward, number, _ in seen:
        happened = plain.step(np.arange(5) % 3)
        assert (happened.next_obs.tolist(), happened.reward.tolist(), happened.number.tolist()) == (next_obs, reward, number)
    envs.close()


def test_simulated_delays_are_lognormal_with_the_median_that_is_asked_for_and_slow_down_each_step() -> None:
    envs = fleet(World(length=10_000), 1, delay_median=0.02, delay_sigma=0.5)
    drawn = sorted(envs._delay() for _ in range(4001))
    logs = np.log(drawn)
    # Five standard errors of a median and of a standard deviation.
    assert abs(logs[2000] - np.log(0.02)) < 5 * 1.2533 * 0.5 / 4001**0.5
    assert abs(logs.std() - 0.5) < 5 * 0.5 / 8002**0.5


def test_an_actor_without_environments_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one environment"):
        ActorConfig(envs=0)


# --- checkpoints -------------------------------------------------------------------------------------------------------------


def test_episodes_under_way_go_on_from_their_seeds_and_actions() -> None:
    first = fleet(World())
    first.step(acts(1, 2))
    first.step(acts(2, 0))
    again = Fleet(World().build, 2, ActorConfig(), lambda env, number: 10 * env + number)
    assert again.load(json.loads(json.dumps(first.state()))) == []
    for _ in range(3):
        a, b = first.step(acts(1, 1)), again.step(acts(1, 1))
        assert (a.next_obs.tolist(), a.number.tolist(), a.step.tolist()) == (
            b.next_obs.tolist(),
            b.number.tolist(),
            b.step.tolist(),
        )
        assert a.ended == b.ended


def test_an_environment_with_a_chance_of_its_own_begins_a_new_episode_and_is_counted() -> None:
    first = fleet(World())
    first.step(acts(1, 2))
    state = first.state()
    state["obs"][0] = [5.0, 5.0]
    again = Fleet(World().build, 2, ActorConfig(), lambda env, number: 10 * env + number)
    (failure,) = again.load(state)
    assert "something else" in failure.message
    assert again.obs.tolist() == [[1, 0], [10, 1]]


# --- the actor ---------------------------------------------------------------------------------------------------------------


def actor(world: World, *, envs: int = 2, algorithm: object = None, **settings: object) -> Collector:
    config = ActorConfig(envs=envs, **settings)
    return Collector(world, config, algorithm or ppo.Config(hidden=(4,)), inprocess.subscriber(), seed=5)


def order(item: int = 0, steps: int = 3, **settings: object) -> Order:
    return Order(item=item, steps=steps, **settings)


def test_a_chunk_has_every_step_with_its_log_prob_version_episode_and_place() -> None:
    chunk = actor(World(length=2)).collect(order(), None).chunk
    columns = chunk.columns
    assert {name: tuple(c.shape) for name, c in columns.items()} == {
        "obs": (3, 2, 2),
        "next_obs": (3, 2, 2),
        **dict.fromkeys(("action", "reward", "terminated", "truncated", "log_prob", "version", "episode", "step"), (3, 2)),
    }
    assert columns["step"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert columns["terminated"].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert torch.equal(columns["obs"][1], columns["next_obs"][0])
    assert torch.equal(columns["reward"], columns["action"].float())
    assert columns["log_prob"].lt(0).all()
    assert len(columns["episode"].unique()) == 4
    assert set(columns["version"].flatten().tolist()) == {0}


def test_log_probs_are_those_of_the_policy_that_chose() -> None:
    playing = actor(World())
    chunk = playing.collect(order(steps=8), None).chunk
    with torch.no_grad():
        policy = playing.policy["actor"](chunk.columns["obs"])
    assert policy.log_prob(chunk.columns["action"]).numpy() == pytest.approx(chunk.columns["log_prob"].numpy(), abs=1e-6)


def test_random_actions_are_uniform_over_all() -> None:
    chunk = actor(World(length=50)).collect(order(steps=500, mode="random"), None).chunk
    assert chunk.columns["log_prob"].unique().tolist() == pytest.approx([-np.log(3)])
    counts = torch.bincount(chunk.columns["action"].flatten(), minlength=3)
    assert (counts - 1000 / 3).abs().max() < 6 * (1000 * 2 / 9) ** 0.5


def test_exploration_follows_the_environment_steps_of_the_run() -> None:
    playing = actor(World(length=50), algorithm=dqn.Config(hidden=(4,), explore_steps=1000, last_epsilon=0.0))
    early, late = (playing.collect(order(steps=50, taken=taken), None).chunk for taken in (0, 10**6))
    assert early.columns["log_prob"].max() < 0
    assert late.columns["log_prob"].eq(0).all()


def test_a_failure_cuts_its_episode_at_the_step_before_and_the_chunk_is_full() -> None:
    world = World(length=100)
    world.script[2 + 2 * 2] = fail  # resets and two steps of both, then the first's third
    chunk = actor(world).collect(order(steps=4), None).chunk
    assert chunk.columns["truncated"][:, 0].tolist() == [False, True, False, False]
    assert chunk.columns["step"][:, 0].tolist() == [0, 1, 0, 1]
    assert chunk.columns["step"][:, 1].tolist() == [0, 1, 2, 3]
    assert not chunk.columns["truncated"][:, 1].any()
    assert len(chunk.failures) == 1
    assert chunk.ended == ()


def test_the_same_orders_give_the_same_chunks_and_another_life_gives_others() -> None:
    def chunks(life: int) -> list[torch.Tensor]:
        playing = actor(World())
        return [c for i in range(3) for c in playing.collect(order(i, life=life), None).chunk.columns.values()]

    first, second, other = chunks(0), chunks(0), chunks(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_judging_leaves_the_episodes_that_are_collected_alone() -> None:
    quiet, judged = actor(World()), actor(World())
    for i in range(3):
        a, b = (playing.collect(order(i), None).chunk for playing in (quiet, judged))
        assert all(torch.equal(a.columns[name], b.columns[name]) for name in a.columns)
        assert len(judged.judge(None, 3, 0).episodes) == 3


def test_every_judgement_is_of_the_same_episodes_and_counts_failed_ones_without_their_scores() -> None:
    world = World()
    judge = actor(world, envs=2)
    first = judge.judge(None, 5, 7)
    again = judge.judge(None, 5, 7)
    assert first.episodes == again.episodes
    assert [e.length for e in first.episodes] == [LENGTH] * 5
    world.script[world.calls + 5] = fail
    broken = judge.judge(None, 5, 7)
    assert len(broken.failures) == 1
    assert len(broken.episodes) == 5


def test_a_restored_actor_collects_what_the_saved_one_would_have() -> None:
    first, again = actor(World()), actor(World())
    first.collect(order(0), None)
    again.load(json.loads(json.dumps(first.save())))
    for i in (1, 2):
        a, b = first.collect(order(i), None).chunk, again.collect(order(i), None).chunk
        assert all(torch.equal(a.columns[name], b.columns[name]) for name in a.columns)


def test_episode_seeds_are_fixed_by_what_they_are_for() -> None:
    assert seed_from("a", 1) == seed_from("a", 1) != seed_from("a", 2)
    assert 0 <= seed_from("anything") < 2**31
