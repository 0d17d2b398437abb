"""Claims about control on normalised scores: what a run says, and which data it is about."""

import pytest

from freerun.algorithms.control import sac, td3_bc
from freerun.claims.control import Job, first, since, train
from freerun.plainfiles import load_values
from freerun.store.phases import Phase, Portion
from freerun.tasks.point import PointConfig, PointData

DATA = PointData(env=PointConfig(steps=5), episodes=6)
JOB = Job(env=DATA.env, scores=DATA, batch=8, envs=2, chunk=2, evaluations=2, episodes=2, last_episodes=3)
OFFLINE = Phase(name="offline", updates=40, sources=(Portion(source="dataset"),))


def numbers_of(**changes):
    given = {"phases": (OFFLINE,), "seed": 0, "job": JOB, "data": DATA, "control": {"updates": 10}, **changes}
    return train(td3_bc.Config(hidden=(8,)), **given)


def test_a_run_says_how_good_the_policy_was_and_repeats() -> None:
    numbers = numbers_of(watch=("updates", "no/such"))
    (half,) = numbers["scores"]
    assert (numbers["mean"], numbers["lowest"]) == pytest.approx((half, half), abs=0.05)
    assert (numbers["updates"], numbers["no/such"], numbers["diverged"]) == (10.0, None, 0.0)
    again = numbers_of(watch=("updates", "no/such"))
    assert {k: v for k, v in numbers.items() if k != "cpu"} == {k: v for k, v in again.items() if k != "cpu"}


def test_a_run_with_actors_has_replay_beside_the_data() -> None:
    phases = (OFFLINE, Phase(env_steps=40))
    numbers = train(sac.Config(hidden=(8,)), phases=phases, seed=0, job=JOB, data=DATA, watch=("env/total",))
    assert numbers["env/total"] == 40.0


def test_a_run_that_diverges_scores_like_a_random_policy() -> None:
    numbers = numbers_of(trainer={"reward_scale": 1e30})
    assert (numbers["diverged"], numbers["score"], numbers["mean"]) == (1.0, 0.0, 0.0)


def test_what_is_asked_afterwards_is_asked_of_the_last_checkpoint() -> None:
    def after(config, checkpoint) -> dict[str, float]:
        return {"updates made": load_values(checkpoint / "trainer", "trainer")["updater"]["num_updates"]}

    assert numbers_of(after=after)["updates made"] == 40


def test_the_evaluations_since_a_share_of_the_work_begin_with_the_policy_of_then() -> None:
    numbers = {"scores": [1.0, 2.0, 3.0], "score": 4.0}
    assert since(numbers, 0.5) == [2.0, 3.0, 4.0]
    assert since(numbers, 0.0) == [1.0, 2.0, 3.0, 4.0]
    assert since(numbers, 1.0) == [4.0]


def test_the_first_episodes_of_a_data_set_are_whole() -> None:
    part = first(DATA.build(), 2)
    assert (part.num_rows, len(part.lengths), part.scores) == (10, 2, DATA.build().scores)
