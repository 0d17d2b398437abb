"""Methods that need the whole step, in the trainer: packing changes nothing, and what is reported is the loss."""

import math

import pytest

from freerun.algorithms.language import dart, dpo, ppo, reinforce_pp, rloo
from freerun.metrics import plain
from freerun.types import Example, Prompt, RewardResult, Source

METHODS = {
    "ppo": ppo.Config(kl_coefficient=0.1, entropy_coefficient=0.01),
    "dpo": dpo.Config(),
    "rloo": rloo.Config(kl_coefficient=0.1, clip="sequence"),
    "reinforce_pp": reinforce_pp.Config(kl_coefficient=0.1),
    "dart": dart.Config(keep=0.5, cap=2.0),
}


def one_step(trainer, items):
    trainer.start()
    trainer.accumulate(items)
    return plain(trainer.finish_step().metrics)


@pytest.fixture(scope="module")
def groups(group, network):
    return [group(item, model=network, rewards=[1.0, 0.0, 0.5, 0.2]) for item in range(4)]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_depend_on_how_its_trajectories_are_packed(make_trainer, groups, name):
    ways = [{"packing": "rows"}, {"micro_tokens": 1000}, {"micro_tokens": 20}]
    whole, *others = (one_step(make_trainer(METHODS[name], clip_norm=0.0, **way), groups) for way in ways)
    assert whole["grad_norm"] > 0
    for other in others:
        assert set(other) == set(whole)
        for key in [key for key in whole if key.startswith(("loss/", "algorithm/", "grad_norm", "advantage/"))]:
            assert other[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", METHODS)
def test_several_updates_of_one_step_are_finite_and_learn_from_every_part(make_trainer, groups, name):
    trainer = make_trainer(METHODS[name], lr=1e-3, minibatches=2, epochs=2)
    metrics = one_step(trainer, groups)
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert trainer._num_updates == 4


def test_the_loss_that_dpo_reports_is_that_of_its_pairs_and_falls(make_trainer):
    """A data set of pairs, over and over: log 2 at the reference, and less with every step."""
    pair = Example(
        uid="pair",
        prompt=Prompt("p", "ab"),
        responses=("cde", "fg"),
        rewards=(RewardResult(1.0), RewardResult(0.0)),
        source=Source.DATASET,
    )
    trainer = make_trainer(dpo.Config(), lr=1e-3)
    trainer.start()
    losses, margins = [], []
    for _ in range(5):
        trainer.accumulate([pair])
        metrics = plain(trainer.finish_step().metrics)
        losses.append(metrics["loss/pair"])
        margins.append(metrics["algorithm/margin"])
    assert losses[0] == pytest.approx(math.log(2))
    assert losses == sorted(losses, reverse=True)
    for loss, margin in zip(losses, margins, strict=True):
        assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-margin))), rel=1e-5)


def test_the_critic_of_ppo_comes_to_expect_the_reward(make_trainer, group, network):
    """One group again and again, each response with the reward 1: the advantage is what the critic did not expect."""
    certain = group(0, model=network, rewards=[1.0] * 4)
    trainer = make_trainer(ppo.Config(value_clip=None, whiten=False, decay=1.0), lr=1e-6, critic_lr_share=1e4)
    trainer.start()
    surprise = []
    for version in range(30):
        for t in certain.trajectories:
            t.version_T[t.action_T] = version
        trainer.accumulate([certain])
        surprise.append(plain(trainer.finish_step().metrics)["advantage/abs_mean"])
    assert surprise[0] == pytest.approx(1.0)
    assert surprise[-1] < 0.2


def test_a_data_set_without_rewards_is_no_data_set_of_pairs(make_trainer):
    """What DPO cannot do without is named before anything is trained on."""
    bare = Example(uid="bare", prompt=Prompt("p", "ab"), responses=("c", "d"), source=Source.DATASET)
    trainer = make_trainer(dpo.Config())
    trainer.start()
    with pytest.raises(Exception, match="2 trajectories, 0 rewards"):
        trainer.accumulate([bare])


@pytest.mark.parametrize("name", ["ppo", "rloo", "reinforce_pp", "dart"])
def test_log_probs_that_a_data_set_does_not_have_are_a_named_missing_column(make_trainer, name):
    scored = Example(
        uid="scored",
        prompt=Prompt("p", "ab"),
        responses=("c", "d"),
        rewards=(RewardResult(1.0), RewardResult(0.0)),
        source=Source.DATASET,
    )
    trainer = make_trainer(METHODS[name])
    trainer.start()
    trainer.accumulate([scored])
    with pytest.raises(KeyError, match="logp_behaviour"):
        trainer.finish_step()
