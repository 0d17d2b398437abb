"""Claims about control: what a run of the real engine tells them."""

from dataclasses import replace

import pytest
import torch
from worlds import COUNT

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import sac, td3
from freerun.claims import episodes, td3_overestimation
from freerun.env_schedule import EnvSchedule
from freerun.plainfiles import load_values, save_values
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig


def small(algorithm: object = None, **trainer: object) -> ControlRun:
    return ControlRun(
        env=GymConfig(id=COUNT),
        algorithm=algorithm or sac.Config(hidden=(8,)),
        control=EnvSchedule(phases=(Phase(env_steps=96, start=16),), chunk=4),
        sources=(ReplayConfig(capacity=500),),
        actor=ActorConfig(envs=2),
        trainer=ControlTrainerConfig(batch=16, **trainer),
    )


def test_a_run_says_how_good_the_policy_was_before_during_and_after() -> None:
    numbers = episodes.play(small(), seed=0, also=("updates", "no/such"))
    assert len(numbers["curves"]["return"]) == len(numbers["curves"]["taken"]) == episodes.LOOKS - 1
    assert numbers["updates"] == 8.0
    assert numbers["no/such"] is None
    assert numbers["diverged"] == 0.0
    assert "score" not in numbers
    again = episodes.play(small(), seed=0, also=("updates", "no/such"))
    assert {k: v for k, v in numbers.items() if k != "cpu"} == {k: v for k, v in again.items() if k != "cpu"}
    assert episodes.play(small(), seed=1)["curves"] != numbers["curves"]


def test_a_run_that_diverges_counts_as_its_beginning() -> None:
    numbers = episodes.play(small(reward_scale=1e30), seed=0)
    assert numbers["diverged"] == 1.0
    assert numbers["return"] == numbers["mean_return"] == numbers["start"]


def test_scores_come_with_reference_returns() -> None:
    numbers = episodes.play(replace(small(), scores=(-40.0, 10.0)), seed=0)
    assert numbers["score"] == pytest.approx(2.0 * (numbers["return"] + 40.0))


def test_what_a_critic_promises_is_compared_with_what_is_paid(tmp_path, monkeypatch) -> None:
    """A critic that says 7 everywhere, of actions that pay a constant -2.25 in each of five steps."""
    monkeypatch.setattr(td3_overestimation, "STEPS", 10)
    config = small(td3.Config(hidden=(4,), gamma=0.5))
    numbers = {}

    def after(config: ControlRun, checkpoint) -> dict[str, float]:
        values = load_values(checkpoint / "trainer", "trainer")
        for name, network in values["updater"]["networks"].items():
            for key in network:
                network[key] = torch.zeros_like(network[key])
                if name == "critic" and key.endswith("biases.1"):
                    network[key] += 7.0
        save_values(tmp_path / "trainer", "trainer", values)
        numbers.update(
            td3_overestimation.promised_and_paid(replace(config, algorithm=td3.Config(hidden=(4,), gamma=0.5)), tmp_path)
        )
        return {}

    (tmp_path / "trainer").mkdir()
    episodes.play(config, seed=0, after=after)
    assert numbers["promised"] == pytest.approx(7.0)
    gamma = td3_overestimation.GAMMA
    paid = [-2.25 * sum(gamma**k for k in range(10 - t)) for t in range(5)]
    assert numbers["paid"] == pytest.approx(sum(paid) / 5, rel=1e-5)
    assert numbers["too_much"] == pytest.approx(numbers["promised"] - numbers["paid"])
