"""What comes before RL: data read in time, the value of prompts, the choice of responses, interruptions."""

import asyncio
import collections
import os
import signal
from dataclasses import replace

import pytest

from freerun import config as configs
from freerun import stages
from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import alol, pear, sft
from freerun.checkpoint import Checkpoints
from freerun.errors import ConfigError, DataError
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.models import tiny_lm
from freerun.recipes.base import PlacementConfig, ReferenceValueConfig, RunConfig, WarmStartConfig
from freerun.rundir import RunDirectory, read_log
from freerun.schedule import ControllerConfig, Stream
from freerun.tasks import addition, examples, written
from freerun.tracker import Tracker
from freerun.trainer.config import ValueHeadConfig
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Example, Prompt, RewardResult, Sampling

DATA = written.Noisy(alphabet="0123456789", noise=0.5, prompts=12, samples=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))


def offline(**changes) -> RunConfig:
    """A run of a second on a data set."""
    settings = {
        "model": tiny_lm.Config(layers=1, width=16, heads=2, kv_heads=1, context=16, alphabet="0123456789+="),
        "task": addition.Config(digits=1, train=30, heldout=16),
        "algorithm": alol.Config(),
        "sampling": Sampling(max_tokens=3),
        "control": ControllerConfig(steps=6, groups=3, group_size=1, max_lag=0, final_eval_prompts=0, eval_every=0),
        "generator": GeneratorConfig(max_context=16),
        "trainer": TrainerConfig(lr=1e-3),
        "placement": PlacementConfig(kind="inline", schedule="serial"),
        "offline": DATA,
        "reference_value": ReferenceValueConfig(head=ValueHeadConfig(heads=2), epochs=2, batch=4),
    }
    return RunConfig(**{**settings, **changes})


def run(config, directory, *, checkpoint=None):
    made = RunDirectory.resume(directory, 3) if checkpoint else RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([made])
    try:
        outcome = asyncio.run(asyncio.wait_for(launch(config, directory, sinks, checkpoint=checkpoint), 100))
    finally:
        sinks.close()
    return outcome, read_log(directory / "metrics.jsonl").rows


def events(directory, what):
    return [
        row["detail"] for row in read_log(directory / "events.jsonl").rows if row["what"] == what and "epoch" in row["detail"]
    ]


# The value of prompts


def test_each_epoch_says_how_far_the_value_is_from_rewards_and_how_far_a_constant_would_be(tmp_path):
    run(offline(), tmp_path / "run")
    seen = events(tmp_path / "run", "value")
    assert [detail["epoch"] for detail in seen] == [1, 2]
    assert all(0 < detail["error"] < 1 and detail["constant"] > 0 for detail in seen)


def test_a_run_on_positive_responses_trains_on_nothing_else(tmp_path):
    _, rows = run(offline(), tmp_path / "run")
    assert len(rows) == 6
    for row in rows:
        assert row["metrics"]["reward/mean"] == 1.0
        assert row["metrics"]["algorithm/above_value"] == 1.0


def test_a_run_on_all_responses_keeps_their_groups_and_counts_those_without_advantage(tmp_path):
    config = offline(reference_value=replace(offline().reference_value, select="all"))
    _, rows = run(config, tmp_path / "run")
    assert all(row["metrics"]["items/trained"] == 3 * row["step"] for row in rows)
    assert all(0 < row["metrics"]["algorithm/above_value"] < 1 for row in rows)


def test_a_resumed_run_looks_through_the_value_of_its_checkpoint_and_equals_the_unbroken_one(tmp_path):
    config = offline(control=replace(offline().control, checkpoint_every=3))
    _, whole = run(config, tmp_path / "whole")
    run(replace(config, records=replace(config.records, keep_checkpoints=3)), tmp_path / "broken")
    third = Checkpoints(tmp_path / "broken" / "checkpoints").all()[0]
    _, resumed = run(config, tmp_path / "broken", checkpoint=third)
    for left, right in zip(whole, resumed, strict=True):
        for name in ("grad_norm", "loss/policy", "algorithm/advantage"):
            assert left["metrics"][name] == right["metrics"][name]
    assert events(tmp_path / "broken", "value") == events(tmp_path / "whole", "value")


@pytest.mark.parametrize(("held_back", "data"), [(0.0, DATA), (1.0, DATA), (0.2, None)])
def test_a_value_with_nothing_to_fit_or_to_judge_by_is_refused(held_back, data, tmp_path):
    config = offline(offline=data, reference_value=replace(offline().reference_value, held_back=held_back))
    with pytest.raises(ConfigError, match="nothing to be fitted to"):
        run(config, tmp_path / "run")


def test_a_data_set_without_a_response_better_than_expected_is_refused(tmp_path):
    hopeless = tmp_path / "bad.jsonl"
    hopeless.write_text(
        '{"prompt": "1+1=", "responses": ["3"], "rewards": [0]}\n{"prompt": "1+2=", "responses": ["4"], "rewards": [0]}\n'
    )
    config = offline(
        offline=examples.File(path=str(hopeless)), reference_value=replace(offline().reference_value, held_back=0.5)
    )
    with pytest.raises(DataError, match="no response of the data set is better"):
        run(config, tmp_path / "run")


def test_an_algorithm_that_reads_the_value_is_refused_without_the_stage(tmp_path):
    with pytest.raises(ConfigError, match="value_reference"):
        run(offline(reference_value=None), tmp_path / "run")


# Which responses


def test_draws_in_proportion_to_weights_do_not_depend_on_what_was_drawn_before():
    stream = Stream("abc", 7, weights=(1.0, 0.0, 3.0))
    drawn = [stream.at(i) for i in range(4000)]
    counts = collections.Counter(drawn)
    assert counts["b"] == 0
    assert counts["c"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert [Stream("abc", 7, weights=(1.0, 0.0, 3.0)).at(i) for i in (3999, 5, -2)] == [drawn[3999], drawn[5], stream.at(-2)]


def test_each_response_of_an_example_becomes_an_example_of_its_own():
    whole = Example(
        uid="e",
        prompt=Prompt("e", "?"),
        responses=("a", "b"),
        rewards=(RewardResult(0.0), RewardResult(1.0)),
        logps=((-1.0,), (-2.0,)),
    )
    assert [(e.uid, e.responses, e.rewards[0].value, e.logps) for e in stages.responses(whole)] == [
        ("e/0", ("a",), 0.0, ((-1.0,),)),
        ("e/1", ("b",), 1.0, ((-2.0,),)),
    ]
    assert [e.logps for e in stages.responses(replace(whole, logps=()))] == [(), ()]


def test_with_priority_a_response_is_drawn_by_how_much_better_than_expected_it_is(tmp_path, monkeypatch):
    seen = {}

    class Watched(Stream):
        def __init__(self, data, seed, weights=()):
            super().__init__(data, seed, weights)
            if weights:
                seen["rewards"] = [example.rewards[0].value for example in data]
                seen["weights"] = list(weights)

    monkeypatch.setattr(stages, "Stream", Watched)
    run(offline(reference_value=replace(offline().reference_value, select="priority")), tmp_path / "run")
    assert set(seen["rewards"]) == {1.0}
    assert all(0 < weight < 1 for weight in seen["weights"])


# A supervised start


def test_pear_starts_a_run_from_demonstrations_that_say_how_likely_their_author_found_them(tmp_path):
    warm = WarmStartConfig(algorithm=pear.Config(), examples=DATA, steps=2, batch=4)
    outcome, _ = run(offline(warm_start=warm), tmp_path / "run")
    assert outcome.finished


def test_pear_on_demonstrations_of_an_unknown_author_is_an_error_that_names_the_column(tmp_path):
    warm = WarmStartConfig(algorithm=pear.Config(), examples=examples.Solutions(), steps=2, batch=4)
    with pytest.raises(ConfigError, match="logp_behaviour"):
        run(offline(warm_start=warm), tmp_path / "run")


@pytest.mark.parametrize("method", ["warm_start", "fit_value"])
def test_a_run_that_is_interrupted_in_a_stage_saves_no_half_of_it(method, tmp_path, monkeypatch):
    call, asked = Tracker.call, []

    async def interrupted(tracker, handle, name, *args, **kwargs):
        if name == method and method not in asked:
            os.kill(os.getpid(), signal.SIGINT)
        asked.append(name)
        return await call(tracker, handle, name, *args, **kwargs)

    monkeypatch.setattr(Tracker, "call", interrupted)
    warm = WarmStartConfig(algorithm=sft.Config(), steps=5, batch=4)
    outcome, rows = run(offline(warm_start=warm), tmp_path / "run")
    assert asked[-1] == method
    assert (outcome.finished, outcome.step, rows) == (False, 0, [])
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
