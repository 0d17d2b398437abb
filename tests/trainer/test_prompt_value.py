"""The reward to expect on a prompt: fitted to rewards, judged on others, fixed from then on, and in the checkpoint."""

import pytest
import torch

from freerun.algorithms.base import LossOut, Term
from freerun.algorithms.language import alol
from freerun.errors import ConfigError, DataError, MissingColumn
from freerun.ops.reduce import means
from freerun.trainer.config import ValueHeadConfig
from freerun.trainer.trainer import check
from freerun.types import Batch, Example, Prompt, RewardResult

HEAD = ValueHeadConfig(heads=4, lr=1e-2)


def scored(text, *rewards):
    responses = tuple("abcd"[i] for i in range(len(rewards)))
    return Example(uid=text, prompt=Prompt(text, text), responses=responses, rewards=tuple(map(RewardResult, rewards)))


def easy_and_hard(num):
    """Prompts that say how good the answers to them are: three in four right, or one in four."""
    good, bad = (1.0, 1.0, 1.0, 0.0), (0.0, 0.0, 1.0, 0.0)
    return [scored(f"{'+' if i % 2 else '-'}{i}=", *(good if i % 2 else bad)) for i in range(num)]


def fitted(trainer, num=32, epochs=40):
    for _ in range(epochs):
        trainer.fit_value(easy_and_hard(num), HEAD)
        trainer.judge_value(easy_and_hard(num))
    return trainer


def reading(reinforce):
    """REINFORCE that says which values its batch holds."""

    def loss(outputs, batch, state):
        value_BT = batch["value_reference"][:, None].expand_as(outputs["logp"])
        return LossOut(-batch["advantage"] * outputs["logp"], means(batch["mask"], value=value_BT))

    needs = frozenset({"mask", "advantage", "value_reference"})
    return reinforce(changes={"terms": (Term(name="policy", loss=loss),), "needs": needs})


def test_the_value_learns_what_to_expect_on_each_prompt(make_trainer):
    values = fitted(make_trainer(alol.Config())).values(easy_and_hard(2))
    assert values == pytest.approx([0.25, 0.75], abs=0.08)


def test_the_error_is_the_mean_over_responses_and_is_that_of_the_kept_head(make_trainer):
    trainer = make_trainer(alol.Config())
    trainer.fit_value([scored("a", 1.0)], HEAD)
    error = trainer.judge_value([scored("abc", 1.0, 0.0), scored("b", 1.0)])
    first, second = trainer.values([scored("abc", 0.0), scored("b", 0.0)])
    assert error == pytest.approx(((first - 1) ** 2 + first**2 + (second - 1) ** 2) / 3, rel=1e-5)


def test_the_head_that_did_best_on_what_was_held_back_counts(make_trainer):
    trainer = make_trainer(alol.Config())
    held = [scored("abc", 1.0)]
    trainer.fit_value(held, HEAD)
    best = trainer.judge_value(held)
    for _ in range(20):
        trainer.fit_value([scored("abc", 0.0)], HEAD)
        assert trainer.judge_value(held) > best
    assert (1 - trainer.values(held)[0]) ** 2 == pytest.approx(best, rel=1e-5)


def test_fitting_leaves_the_policy_as_it_was(make_trainer, network):
    trainer = fitted(make_trainer(alol.Config()), epochs=3)
    before, after = network.state_dict(), trainer._learner.policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_micro_batches_change_neither_fit_nor_values(make_trainer):
    whole, cut = (fitted(make_trainer(alol.Config(), micro_tokens=n), epochs=5) for n in (4096, 12))
    assert whole.values(easy_and_hard(4)) == pytest.approx(cut.values(easy_and_hard(4)), rel=1e-4)


def test_every_row_of_a_group_gets_the_value_of_its_prompt_as_the_reference_sees_it(make_trainer, reinforce):
    """And goes on getting it after the policy has moved."""
    trainer = fitted(make_trainer(reading(reinforce), lr=1e-2), epochs=5)
    examples = easy_and_hard(3)
    expected = trainer.values(examples)
    trainer.start()
    for _ in range(3):
        trainer.accumulate(examples)
        for row in trainer._rows:
            assert row.per_row["value_reference"] == pytest.approx(expected[row.per_row["group"]], rel=1e-5)
        trainer.finish_step()


def test_a_checkpoint_holds_the_value_and_the_reference_it_looks_through(make_trainer, reinforce, tmp_path):
    trainer = fitted(make_trainer(reading(reinforce), lr=1e-2), epochs=5)
    trainer.start()
    trainer.accumulate(easy_and_hard(2))
    trainer.finish_step()
    trainer.save(tmp_path / "a")
    other = make_trainer(reading(reinforce), lr=1e-2)
    other.load(tmp_path / "a")
    other.start()
    assert other.values(easy_and_hard(4)) == trainer.values(easy_and_hard(4))


def test_a_run_without_the_stage_is_refused_before_it_starts():
    with pytest.raises(ConfigError, match="'alol' reads column 'value_reference'"):
        check(None, alol.Config(), 1)
    check(None, alol.Config(), 1, fits_value=True)
    check(None, alol.Config(signal="reward"), 1)


def test_a_trainer_without_a_value_is_refused_when_it_starts(make_trainer):
    with pytest.raises(ConfigError, match="'alol' reads column 'value_reference'"):
        make_trainer(alol.Config()).start()


def test_a_batch_without_a_value_is_an_error_that_names_it():
    algorithm = alol.Config().build()
    logp_BT = torch.zeros(1, 1)
    batch = Batch({"mask": logp_BT.bool(), "reward": torch.ones(1), "logp_reference": logp_BT}, reader="alol")
    with pytest.raises(MissingColumn, match="value_reference"):
        algorithm.terms[0].loss({"logp": logp_BT}, batch, {})


@pytest.mark.parametrize("example", [scored("a"), scored("a", 1.0, -0.1), scored("a", 1.5), scored("a", float("nan"))])
def test_a_reward_that_no_value_can_reach_is_refused(make_trainer, example):
    with pytest.raises(DataError, match="no value can be fitted to example 'a'"):
        make_trainer(alol.Config()).fit_value([example], HEAD)


def test_heads_that_do_not_divide_the_width_are_refused(make_trainer):
    with pytest.raises(ConfigError, match="heads of the value"):
        make_trainer(alol.Config()).fit_value(easy_and_hard(2), ValueHeadConfig(heads=5))
