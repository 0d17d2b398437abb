"""Federated runs on a simulated clock: rounds as the scheme says, nothing but changes travels, sums as the weights say."""

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from freerun.actors.environment import ActorConfig, GymConfig, Step
from freerun.actors.mixture import Mixture
from freerun.algorithms.control import ppo, sac
from freerun.clients import Server
from freerun.env_schedule import EnvSchedule
from freerun.errors import ConfigError
from freerun.launch_control import launch_control
from freerun.metrics import Fanout
from freerun.plan.timed_control import ControlTimes, simulate
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ClientConfig, ControlRun, Federation
from freerun.store.phases import Phase
from freerun.store.rounds import Arrivals, Interval, Synchronous
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import Spaces

SPACES = Spaces(obs=(1,), actions=1, discrete=False)


@dataclass(frozen=True)
class Pull:
    """Episodes of four steps that pay for actions near `centre`."""

    centre: float = 0.0

    def build(self, *, picture=False):
        return Pulling(self.centre)


class Pulling:
    spaces = SPACES

    def __init__(self, centre):
        self.centre, self.steps = centre, 0

    def reset(self, seed):
        self.steps = 0
        return np.ones(1, np.float32)

    def step(self, action):
        self.steps += 1
        paid = -float((action[0] - self.centre) ** 2)
        return Step(np.ones(1, np.float32), paid, False, self.steps == 4)

    def close(self):
        pass


MIXED = Mixture(envs=(Pull(0.5), Pull(-1.0)))


def config(scheme, *, seconds=(1.0, 3.0), lr=1.0, algorithm=None, steps=48, weights="rate", centres=(0.0, 0.0)):
    return ControlRun(
        env=Pull(),
        algorithm=algorithm or sac.Config(hidden=(4,)),
        federation=Federation(
            clients=tuple(ClientConfig(env=Pull(c), seconds=s) for c, s in zip(centres, seconds, strict=True)),
            scheme=scheme,
            lr=lr,
            weights=weights,
        ),
        control=EnvSchedule(phases=(Phase(env_steps=steps, utd=0.5),), chunk=4, evaluations=0, final_eval_episodes=0),
        sources=(ReplayConfig(capacity=200),),
        actor=ActorConfig(envs=1),
        trainer=ControlTrainerConfig(batch=4),
    )


@pytest.fixture
def rounds_of(monkeypatch):
    """`rounds_of(config)`: (clients, versions that they were sent) of each step of a simulated run, and the run."""
    seen = []
    accumulate = Server.accumulate

    def looking(self, chunks):
        seen.append(([c.actor for c in chunks], [c.oldest_version for c in chunks]))
        assert all(set(c.columns) == {"reward"} and c.change for c in chunks)
        return accumulate(self, chunks)

    monkeypatch.setattr(Server, "accumulate", looking)

    def run(made):
        seen.clear()
        ran = simulate(made, ControlTimes())
        return list(seen), ran

    return run


def test_fedavg_is_synchronous(rounds_of):
    seen, ran = rounds_of(config(Synchronous()))
    assert seen == [([0, 1], [n, n]) for n in range(6)]
    assert ran.seconds == pytest.approx(6 * 3.0)


def test_asynchronous_fedavg_adds_up_each_arrival(rounds_of):
    seen, ran = rounds_of(config(Arrivals(1), seconds=(1.0, 3.25)))
    assert all(len(clients) == 1 for clients, _ in seen)
    assert [sum(clients == [i] for clients, _ in seen) for i in (0, 1)] == [9, 3]
    assert ran.seconds == pytest.approx(3 * 3.25)
    assert max(n - versions[0] for n, (_, versions) in enumerate(seen)) == 3, "three of the other one end meanwhile"


def test_fedfix_adds_up_after_fixed_times(rounds_of):
    seen, ran = rounds_of(config(Interval(2.0), seconds=(1.0, 2.5), steps=24))
    assert seen == [([0], [0]), ([1, 0], [0, 1]), ([0], [2]), ([1, 0], [2, 3])]
    assert ran.seconds == pytest.approx(8.0)


def test_fedbuff_adds_up_so_many_and_what_fills_no_round_is_not_used(rounds_of):
    seen, ran = rounds_of(config(Arrivals(3), steps=44))
    assert [len(clients) for clients, _ in seen] == [3, 3, 3]
    assert ran.taken == 44


def test_a_lone_client_is_a_run_without_federation(monkeypatch):
    """One client whose changes are added with weight 1 has, after each step, its own weights at the server."""
    trained = []
    finish = Server.finish_step

    def looking(self, keep=(), plan=None):
        sent = self.weights()
        change = self._works[0].change
        report = finish(self, keep, plan)
        trained.append(max(float((self.weights()[n] - sent[n] - change[n]).abs().max()) for n in sent))
        return report

    monkeypatch.setattr(Server, "finish_step", looking)
    simulate(config(Synchronous(), seconds=(1.0,), centres=(0.0,)), ControlTimes())
    assert len(trained) == 12 and max(trained) < 1e-6


def test_a_federation_runs_in_real_time(tmp_path):
    made = replace(config(Interval(0.02), seconds=(0.01, 0.03)), placement=PlacementConfig(kind="inline"), judge_env=MIXED)
    made = replace(made, control=replace(made.control, final_eval_episodes=4))
    outcome = asyncio.run(launch_control(made, tmp_path, Fanout(()), checkpoint_at_end=False))
    assert outcome.finished
    assert [len(trial.returns) for trial in outcome.evaluations] == [4, 4]
    assert outcome.evaluations[-1].version == outcome.step > 1


def test_an_episode_of_a_mixture_follows_from_its_seed():
    env, alike = MIXED.build(), MIXED.build()
    paid = []
    for seed in range(20):
        for one in (env, alike):
            one.reset(seed)
        paid.append(env.step(np.zeros(1)).reward)
        assert paid[-1] == alike.step(np.zeros(1)).reward
    assert set(paid) == {-0.25, -1.0}
    other = Mixture(envs=(Pull(), GymConfig(id="CartPole-v1")))
    with pytest.raises(ConfigError, match="cannot be mixed"):
        other.build()


@pytest.mark.slow
def test_policies_meet_where_the_importances_say():
    """Clients pull the mean action to 0.6 and to -0.6, and the first one is four times as fast. By hand: with weights that undo
    this the policy ends in the middle; with equal ones at 0.8 * 0.6 - 0.2 * 0.6 = 0.36. Steps are in proportion to gradients
    (no whitening, an optimiser with a large epsilon): steps of one size would follow the majority."""
    method = ppo.Config(lr=0.9, value_lr=0.9, hidden=(8,), gamma=0.0, whiten=False)

    def mean_action(weights):
        found = []
        made = config(
            Arrivals(1),
            seconds=(1.0, 4.0),
            centres=(0.6, -0.6),
            weights=weights,
            lr=0.25,
            algorithm=method,
            steps=20_000,
        )
        made = replace(made, actor=ActorConfig(envs=8), trainer=ControlTrainerConfig(epochs=2, eps=30.0))
        original = Server.close

        def closing(self):
            with torch.no_grad():
                found.append(float(self._updater.networks["actor"](torch.ones(1, 1)).mean_BA))
            original(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Server, "close", closing)
            simulate(made, ControlTimes())
        return found[0]

    assert mean_action("rate") == pytest.approx(0.0, abs=0.12)
    assert mean_action("equal") == pytest.approx(0.36, abs=0.12)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"clients": ()}, "at least one client"),
        (
            {"clients": (ClientConfig(env=Pull()),), "scheme": Arrivals(1)},
            "seconds of every client, for weights that go by them",
        ),
        ({"clients": (ClientConfig(env=Pull(), importance=0.0),)}, "importances above 0"),
        ({"clients": (ClientConfig(env=Pull()),), "lr": 0.0}, "lr > 0"),
    ],
)
def test_a_federation_that_cannot_be_says_why(changes, rule):
    with pytest.raises(ConfigError) as caught:
        Federation(**changes)
    assert caught.value.expected == rule


def test_only_one_phase_can_be_federated():
    made = config(Synchronous())
    two = replace(made.control, phases=(Phase(updates=1, name="a"), Phase(env_steps=8)))
    with pytest.raises(ConfigError, match="cannot be federated"):
        simulate(replace(made, control=two), ControlTimes())
