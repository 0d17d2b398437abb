"""What every method says when the data lack what it reads: the error names what is missing, and nothing is made up. Nothing
here lists methods; what `tests/contract` asks of a batch that lacks a column is asked here of items of a data set."""

import importlib
import pkgutil
from dataclasses import replace

import pytest

from freerun.algorithms import language
from freerun.algorithms.language import decoupled_ppo, minirl
from freerun.errors import ConfigError, DataError, MissingColumn
from freerun.metrics import plain
from freerun.types import Example, Prompt, RewardResult, Source

METHODS = {m.name: importlib.import_module(f"{language.__name__}.{m.name}") for m in pkgutil.iter_modules(language.__path__)}
OF_SAMPLERS = {"logp_behaviour", "lag", "version"}
"""Columns that only whoever sampled knows."""
BARE = Example(uid="e", prompt=Prompt("e", "2+2="), responses=("4", "5"), source=Source.DATASET)
SCORED = replace(BARE, rewards=(RewardResult(1.0), RewardResult(-1.0)))


def step(trainer, *items):
    trainer.start()
    trainer.accumulate(items)
    return plain(trainer.finish_step().metrics)


@pytest.mark.parametrize("name", METHODS)
def test_responses_without_rewards_are_refused_with_the_item_and_what_it_lacks(make_trainer, name):
    trainer = make_trainer(METHODS[name].Config())
    with pytest.raises(DataError) as caught:
        trainer.accumulate([BARE])
    assert "(prompt 'e')" in caught.value.what
    assert caught.value.given == "2 trajectories, 0 rewards"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_on_responses_of_an_unknown_author_or_names_what_it_would_have_to_know(make_trainer, name):
    config = METHODS[name].Config()
    columns = config.build().columns
    if absent := columns & (OF_SAMPLERS | {"value_reference"}):
        with pytest.raises((MissingColumn, ConfigError)) as caught:
            step(make_trainer(config), SCORED)
        assert f"'{name}'" in caught.value.what
        assert any(f"column '{column}'" in caught.value.what for column in absent)
    else:
        assert step(make_trainer(config), SCORED)["grad_norm"] > 0


def test_an_age_that_nobody_knows_is_missing_where_the_proximal_policy_is_made_of_it(make_trainer):
    known = replace(SCORED, logps=((-1.0, -0.5), (-2.0, -0.5)))
    assert step(make_trainer(decoupled_ppo.Config()), known)["grad_norm"] > 0
    with pytest.raises(MissingColumn, match="'decoupled_ppo' reads column 'lag'"):
        step(make_trainer(decoupled_ppo.Config(proximal="interpolated")), known)


@pytest.mark.parametrize("routing", ["update", "rollout"])
def test_minirl_cannot_replay_the_routing_of_a_dense_model(make_trainer, routing):
    with pytest.raises(ConfigError, match="routing cannot be replayed"):
        make_trainer(minirl.Config(routing=routing))
