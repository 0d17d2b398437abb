"""The tiny transformer in the real engine: what a run's data are, and that it repeats."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from freerun.algorithms.language import aipo, grpo, reinforce
from freerun.claims import tiny
from freerun.claims.tiny import Job, Sampled
from freerun.errors import ConfigError
from freerun.launch import launch
from freerun.tasks import reversal
from freerun.types import RewardResult, Source

SMALL = Job(
    task=reversal.Config(least=2, most=2, letters=6, train=20, heldout=16),
    layers=1,
    width=32,
    max_tokens=4,
    warm_accuracy=0.2,
    steps=8,
    groups=3,
    group_size=4,
    heldout=16,
)
"""A run of a second."""


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREERUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def lags(**data):
    """The lag of each step, told by the trainer's own count."""
    return tiny.train(reinforce.Config(), seed=0, job=SMALL, **data)["curves"]["lag/mean"]


def test_with_a_lag_every_token_is_exactly_that_old_as_soon_as_it_can_be():
    assert lags() == [0.0] * 8
    assert lags(lag=1) == [0.0] + [1.0] * 7
    assert lags(lag=4) == [0.0, 1.0, 2.0, 3.0] + [4.0] * 4


def test_in_rounds_the_sampler_is_refreshed_every_so_many_updates():
    assert lags(rounds=4) == [0.0, 1.0, 2.0, 3.0] * 2


def test_a_lag_and_rounds_exclude_each_other():
    with pytest.raises(ConfigError, match="constant lag or made in rounds"):
        lags(lag=2, rounds=3)


def test_a_run_repeats_to_the_bit_and_its_seed_matters():
    first, again, other = (tiny.train(aipo.Config(), seed=s, job=SMALL, lag=2) for s in (0, 0, 1))
    assert first | {"cpu": 0} == again | {"cpu": 0}
    assert first["curves"] != other["curves"]


def test_on_fresh_data_nothing_is_off_policy():
    run = tiny.train(grpo.Config(), seed=0, job=SMALL)
    assert run["ess"] == pytest.approx(1.0, abs=1e-5)
    assert run["clipped"] in (None, 0.0)


def test_all_arms_of_a_seed_begin_with_the_same_weights_which_are_made_once():
    file = tiny.warm_start(SMALL, 0)
    made = file.stat().st_mtime_ns
    assert tiny.warm_start(SMALL, 0) == file and file.stat().st_mtime_ns == made
    assert tiny.warm_start(replace(SMALL, lr=1.0), 0) == file, "the learning rate of RL is no part of it"
    assert tiny.warm_start(SMALL, 1) != file
    assert tiny.warm_start(replace(SMALL, warm_accuracy=0.1), 0) != file
    starts = [tiny.train(algorithm, seed=0, job=SMALL)["start"] for algorithm in (aipo.Config(), reinforce.Config())]
    assert starts[0] == starts[1] == tiny.accuracy(SMALL, SMALL.task.build(), file)


def test_a_warm_start_that_does_not_get_there_says_how_far_it_came():
    with pytest.raises(ConfigError, match="does not reach its accuracy"):
        tiny.warm_start(replace(SMALL, warm_accuracy=1.0, warm_limit=5), 0)


def test_a_run_that_diverges_has_nothing_left_to_judge(monkeypatch):
    def nan_loss(self, outputs, batch, state):
        return reinforce.LossOut(outputs["logp"] * math.nan)

    def diverges(outputs, batch, state, *, config):
        return reinforce.LossOut(outputs["logp"] * math.nan)

    monkeypatch.setattr(reinforce, "policy_loss", diverges)
    run = tiny.train(reinforce.Config(baseline="none"), seed=0, job=SMALL)
    assert run["diverged"] == 1.0
    assert run["accuracy"] == run["reward"] == 0.0


def test_an_interrupted_run_is_no_result(monkeypatch):
    async def interrupted(*arguments, **options):
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(tiny, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(aipo.Config(), seed=0, job=SMALL)
    assert launch is not interrupted


def test_a_sampled_data_set_has_whole_responses_with_their_rewards_and_log_probs():
    task = SMALL.task.build()
    examples = Sampled(job=SMALL, weights=str(tiny.warm_start(SMALL, 0)), prompts=10, group_size=4).build(task)
    assert 0 < len(examples) <= 10
    for example in examples:
        assert example.source is Source.DATASET
        assert len(example.responses) == len(example.rewards) == len(example.logps) <= 4
        for text, reward, logps in zip(example.responses, example.rewards, example.logps, strict=True):
            assert len(logps) == len(text) + 1, "one per character, and one for the end"
            assert reward == RewardResult(float(text == example.prompt.meta["answer"]))


def test_the_trainer_agrees_with_the_log_probs_of_a_data_set_made_by_its_own_start():
    """So that ratios begin at one: the effective sample size of the first step is that of fresh data."""
    offline = Sampled(job=SMALL, weights=str(tiny.warm_start(SMALL, 0)))
    run = tiny.train(aipo.Config(), seed=0, job=SMALL, offline=offline)
    assert run["curves"]["ess"][0] == pytest.approx(1.0, abs=1e-4)
    assert run["curves"]["lag/mean"] == [None] * 8, "a data set has no versions"


def test_greedy_accuracy_is_that_of_the_engines_own_evaluation():
    torch.manual_seed(0)
    job = replace(SMALL, steps=1)
    assert tiny.train(aipo.Config(), seed=2, job=job)["start"] == tiny.accuracy(job, job.task.build(), tiny.warm_start(job, 2))
