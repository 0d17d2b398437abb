"""What one step of the trainer guarantees: gradients, masks, staleness, metrics.

Shapes: T positions of a trajectory, B and T of a batch.
"""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.base import LossOut, Term
from freerun.algorithms.language import aipo
from freerun.errors import ConfigError, DataError, Diverged, StaleItem
from freerun.metrics import plain
from freerun.ops.reduce import Reduction
from freerun.trainer.state import load_values
from freerun.trainer.trainer import TrainerConfig, check
from freerun.types import RewardResult, Sampling
from freerun.weights import inprocess


def one_step(trainer, groups, *, parts=1):
    """A step whose groups arrive in `parts`; metrics as numbers, and the published weights."""
    trainer.start()
    for part in range(parts):
        trainer.accumulate(groups[part::parts])
    report = trainer.finish_step()
    return plain(report.metrics), dict(inprocess.subscriber()().adopt(report.ref))


@pytest.fixture(scope="module")
def groups(group, network):
    return [group(item, model=network) for item in range(6)]


# --- the gradient ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", list(Reduction))
def test_the_step_does_not_depend_on_packing_micro_batches_or_streaming(make_trainer, reinforce, groups, reduction) -> None:
    ways = [{"packing": "rows"}, {}, {"micro_tokens": 60}, {"micro_tokens": 20}, {"micro_tokens": 60, "parts": 3}, {"parts": 6}]
    results = []
    for way in ways:
        parts = way.pop("parts", 1)
        # Adam would hide a wrong scale and clipping would change one; the norm shows the gradient itself.
        results.append(one_step(make_trainer(reinforce(reduction), clip_norm=0.0, **way), groups, parts=parts))
    metrics, _ = results[0]
    assert metrics["grad_norm"] > 0.1
    for other, _ in results[1:]:
        for name in ("grad_norm", "loss/policy", "entropy", "tokens/trained", "ess", "reward/std"):
            assert other[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-6)


def test_accumulated_gradients_are_those_of_the_loss_written_out(make_trainer, network, naive_logps, groups) -> None:
    trainer = make_trainer(micro_tokens=60, clip_norm=0.0)
    trainer.start()
    trainer.accumulate(groups)
    total, num = 0.0, 0
    for g in groups:
        mean = sum(r.value for r in g.rewards) / len(g.rewards)
        for t, r in zip(g.trajectories, g.rewards, strict=True):
            total = total - (r.value - mean) * naive_logps(network, t.tokens_T)[t.action_T[1:]].sum()
            num += t.num_actions
    expected = torch.stack([g.norm() for g in torch.autograd.grad(total / num, list(network.parameters()))]).norm()
    assert trainer.finish_step().metrics["grad_norm"].value == pytest.approx(float(expected), rel=1e-4)


def test_terms_with_different_denominators_wait_for_the_whole_step(make_trainer, reinforce, groups) -> None:
    def entropy_loss(outputs, batch, state):
        return LossOut(-outputs["entropy"])

    entropy = Term(
        name="entropy", loss=entropy_loss, outputs=("entropy",), reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN, weight=0.1
    )
    algorithm = reinforce(changes={"terms": (*reinforce().build().terms, entropy)})
    results = [
        one_step(make_trainer(algorithm, micro_tokens=budget, clip_norm=0.0), groups, parts=parts)[0]
        for budget, parts in ((1000, 1), (30, 3))
    ]
    assert results[0]["grad_norm"] == pytest.approx(results[1]["grad_norm"], rel=1e-4)
    assert results[0]["loss/entropy"] < 0
    waiting = make_trainer(algorithm, micro_tokens=30)
    waiting.start()
    assert waiting.accumulate(groups).waiting == sum(len(g.trajectories) for g in groups)


def test_padding_gets_no_gradient_even_where_its_loss_is_infinite(make_trainer, reinforce, groups) -> None:
    def spoiled(outputs, batch, state):
        loss_BT = -batch["advantage"] * outputs["logp"]
        return LossOut(torch.where(batch["mask"], loss_BT, math.inf))

    algorithm = reinforce(changes={"terms": (Term(name="policy", loss=spoiled),)})
    _, spoiled_weights = one_step(make_trainer(algorithm), groups)
    _, expected = one_step(make_trainer(), groups)
    torch.testing.assert_close(spoiled_weights, expected, rtol=0, atol=0)


def test_tokens_that_the_policy_did_not_choose_get_no_gradient(make_trainer, group, network) -> None:
    """Action tokens around an environment's answer: what the answer's log-probs would add must be absent."""
    original = group(0, model=network)
    edited = []
    for trajectory in original.trajectories:
        action_T = trajectory.action_T.clone()
        action_T[trajectory.action_T.nonzero()[0]] = len(trajectory.action_T.nonzero()) == 1
        zeros = {"logp_T": trajectory.logp_T * action_T, "version_T": torch.where(action_T, 0, -1).int()}
        edited.append(replace(trajectory, action_T=action_T, **zeros))
    seen = []

    def spy(outputs, batch, state):
        seen.append(int(batch["mask"].sum()))
        return LossOut(-batch["advantage"] * outputs["logp"])

    trainer = make_trainer()
    trainer._algorithm = replace(trainer._algorithm, terms=(Term(name="policy", loss=spy),))
    metrics, _ = one_step(trainer, [replace(original, trajectories=tuple(edited))])
    assert seen == [sum(t.num_actions for t in edited)] == [metrics["tokens/trained"]]


# --- several optimiser steps per batch ---------------------------------------------------------------------------------------


def test_proximal_log_probs_of_a_single_update_are_its_own(make_trainer, from_proximal, groups) -> None:
    metrics, _ = one_step(make_trainer(from_proximal), groups)
    assert metrics["algorithm/distance"] == 0.0


def test_proximal_log_probs_stay_those_of_the_start_of_the_update(make_trainer, from_proximal, groups) -> None:
    metrics, _ = one_step(make_trainer(from_proximal, minibatches=2, epochs=2), groups)
    assert metrics["algorithm/distance"] > 0.01
    # At lag 0 the proximal policy is the one that sampled.
    assert metrics["algorithm/from_behaviour"] == pytest.approx(0.0, abs=1e-4)


def test_minibatches_cover_every_group_once_per_epoch_and_order_follows_from_the_seed(make_trainer, groups) -> None:
    runs = [one_step(make_trainer(minibatches=4, epochs=3, seed=seed), groups) for seed in (0, 0, 1)]
    computed = runs[0][0]["tokens/computed"]
    assert computed >= 3 * one_step(make_trainer(), groups)[0]["tokens/computed"]
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)
    assert not all(torch.equal(runs[0][1][k], runs[2][1][k]) for k in runs[0][1])


def test_one_group_in_many_minibatches_is_one_update(make_trainer, groups) -> None:
    trainer = make_trainer(minibatches=5)
    one_step(trainer, groups[:1])
    assert trainer._num_updates == 1


# --- data at the edge --------------------------------------------------------------------------------------------------------


def test_empty_responses_and_equal_rewards_are_finite(make_trainer, group, trajectory) -> None:
    empty = replace(group(1, rewards=(1.0, 0.0, 0.0, 0.0)), trajectories=tuple(trajectory([2, 3], []) for _ in range(4)))
    partly = group(2)
    partly = replace(partly, trajectories=(trajectory([2, 3], []), *partly.trajectories[1:]))
    for case in ([empty], [group(3, rewards=(1.0,) * 4)], [empty, partly]):
        metrics, published = one_step(make_trainer(), case)
        assert all(math.isfinite(v) for v in metrics.values() if not isinstance(v, dict))
        assert all(torch.isfinite(t).all() for t in published.values())


def test_trajectories_without_credit_change_nothing_whether_computed_or_not(make_trainer, reinforce, group, network) -> None:
    mixed = [group(0, model=network), group(1, rewards=(1.0,) * 4, model=network), group(2, model=network)]
    for config in ({}, {"minibatches": 2}, {"minibatches": 2, "epochs": 2}):
        computed = make_trainer(reinforce(), clip_norm=0.0, lr=1e-3, **config)
        skipped = make_trainer(reinforce(changes={"advantage_gates": True}), clip_norm=0.0, lr=1e-3, **config)
        (left, left_weights), (right, right_weights) = (one_step(t, mixed) for t in (computed, skipped))
        assert right["tokens/computed"] < left["tokens/computed"]
        assert right["tokens/trained"] == left["tokens/trained"]
        assert right["loss/policy"] == pytest.approx(left["loss/policy"], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(left_weights, right_weights, rtol=1e-3, atol=1e-5)


def test_a_step_without_any_credit_moves_weights_only_by_what_adam_remembers(make_trainer, reinforce, group) -> None:
    flat = [group(1, rewards=(1.0,) * 4)]
    after = []
    for gates in (False, True):
        trainer = make_trainer(reinforce(changes={"advantage_gates": gates}))
        trainer.start()
        for groups in ([group(0)], flat):
            trainer.accumulate([dataclasses.replace(g) for g in groups])
            report = trainer.finish_step()
        after.append(dict(inprocess.subscriber()().adopt(report.ref)))
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=0)


@pytest.mark.parametrize(("version", "lag", "stale"), [(0, 1, True), (1, 1, False), (2, 0, False), (3, None, True)])
def test_tokens_older_than_the_bound_or_newer_than_the_trainer_are_refused(make_trainer, group, version, lag, stale) -> None:
    trainer = make_trainer(max_lag=lag)
    trainer.start()
    trainer.version = 2
    if stale:
        with pytest.raises(StaleItem, match=f"tokens of versions {version} to {version}, trainer at version 2"):
            trainer.accumulate([group(0, version=2), group(1, version=version)])
        assert trainer.accumulate([group(0, version=2)]).groups == 1, "nothing was taken"
    else:
        trainer.accumulate([group(0, version=version)])


def test_malformed_groups_are_refused_by_name(make_trainer, group, trajectory) -> None:
    good = group(4)
    first = good.trajectories[0]
    spoiled = {
        "trajectories, 1 rewards": replace(good, rewards=good.rewards[:1]),
        "logp_T": replace(good, trajectories=(replace(first, logp_T=first.logp_T[1:]), *good.trajectories[1:])),
        "rewards .*nan": replace(good, rewards=(RewardResult(math.nan), *good.rewards[1:])),
        "log-prob is not finite": replace(
            good, trajectories=(replace(first, logp_T=first.logp_T * math.nan), *good.trajectories[1:])
        ),
        "the first token is an action": replace(good, trajectories=(trajectory([], [2, 3]), *good.trajectories[1:])),
    }
    for message, bad in spoiled.items():
        with pytest.raises(DataError, match=rf"item 4 \(prompt 'p4'\)[^$]*{message}"):
            make_trainer().accumulate([bad])


def test_credit_of_a_wrong_shape_is_refused(make_trainer, reinforce, group) -> None:
    algorithm = reinforce(changes={"credit": lambda group, state: (torch.zeros(3), state)})
    with pytest.raises(DataError, match="credit of algorithm 'inline' has the wrong shape"):
        make_trainer(algorithm).accumulate([group(0)])


def test_credit_may_differ_from_token_to_token(make_trainer, reinforce, group) -> None:
    def per_token(group, state):
        longest = max(t.num_actions for t in group.trajectories)
        return torch.arange(longest).float().expand(len(group.trajectories), longest), state

    g = group(0)
    metrics, _ = one_step(make_trainer(reinforce(changes={"credit": per_token})), [g])
    lengths = [t.num_actions for t in g.trajectories]
    assert metrics["advantage/mean"] == pytest.approx(sum(n * (n - 1) / 2 for n in lengths) / sum(lengths))


# --- divergence --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_saves_the_batch_and_raises(make_trainer, reinforce, group, tmp_path) -> None:
    def broken(outputs, batch, state):
        return LossOut(outputs["logp"] * torch.where(batch["advantage"] > 0, math.nan, 1.0))

    trainer = make_trainer(reinforce(changes={"terms": (Term(name="policy", loss=broken),)}), directory=tmp_path)
    trainer.start()
    trainer.accumulate([group(0), group(1)])
    with pytest.raises(Diverged, match=r"(?s)the loss of the step after version 0 is not finite.*nan.*diverged-0"):
        trainer.finish_step()
    saved = load_values(tmp_path / "diverged-0", "batch")
    assert (saved["what"], saved["value"], [g["item"] for g in saved["groups"]]) == ("loss", "nan", [0, 1])
    for original, read in zip(group(1).trajectories, saved["groups"][1]["trajectories"], strict=True):
        assert torch.equal(read["tokens"], original.tokens_T) and torch.equal(read["action"], original.action_T)


def test_a_gradient_that_is_not_finite_raises_before_the_weights_change(make_trainer, reinforce, group) -> None:
    def steep(outputs, batch, state):
        # Finite at 0, with an infinite slope there.
        return LossOut((outputs["logp"] - outputs["logp"].detach()).abs().sqrt())

    trainer = make_trainer(reinforce(changes={"terms": (Term(name="policy", loss=steep),)}))
    before = {k: v.clone() for k, v in trainer._learner.published().items()}
    trainer.start()
    trainer.accumulate([group(0)])
    with pytest.raises(Diverged, match="gradient norm of the step after version 0"):
        trainer.finish_step()
    torch.testing.assert_close(dict(trainer._learner.published()), before, rtol=0, atol=0)


# --- what is measured --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("packing", ["rows", "tree"])
def test_at_lag_0_the_trainer_agrees_with_a_plain_forward_pass_to_rounding(
    make_trainer, group, network, packing, temperature
) -> None:
    sampled = [group(item, model=network, temperature=temperature) for item in range(3)]
    metrics, _ = one_step(make_trainer(packing=packing, temperature=temperature), sampled)
    assert metrics["mismatch/abs_max"] < 5e-5
    assert metrics["mismatch/lag0_abs_mean"] == metrics["mismatch/abs_mean"]
    assert metrics["ess"] == pytest.approx(1.0) and metrics["ratio/max"] == pytest.approx(1.0, abs=1e-4)


def test_another_temperature_shows_as_mismatch(make_trainer, group, network) -> None:
    metrics, _ = one_step(make_trainer(temperature=0.7), [group(0, model=network)])
    assert metrics["mismatch/abs_mean"] > 0.05 and metrics["mismatch/k3"] > 0


def test_metrics_of_a_step_are_in_the_table_and_right(make_trainer, group) -> None:
    trainer = make_trainer(max_lag=2)
    trainer.start()
    trainer.version = 2
    groups = [group(0, version=2, rewards=(1.0, 0.0, 0.0, 1.0)), group(1, version=1, rewards=(1.0,) * 4)]
    trainer.accumulate(groups)
    report = trainer.finish_step()
    metrics = plain(report.metrics)
    counts = [sum(t.num_actions for t in g.trajectories) for g in groups]
    assert report.version == 3 == trainer.version == report.ref.version
    assert metrics["lag/tokens"] == {0: counts[0], 1: counts[1]}
    assert metrics["lag/mean"] == pytest.approx(counts[1] / sum(counts)) and metrics["lag/max"] == 1
    assert metrics["reward/mean"] == 0.75 and metrics["reward/std"] == 0.25 and metrics["reward/flat_groups"] == 0.5
    assert metrics["reward/format"] == 0.5
    assert metrics["tokens/trained"] == sum(counts) and metrics["response/length_mean"] == sum(counts) / 8
    assert metrics["response/stop/eos"] == 1.0 and metrics["response/stop/length"] == 0.0
    assert metrics["lr"] == pytest.approx(1e-2) and metrics["grad_norm"] > 0
    assert {f"time/{k}": v for k, v in report.seconds.items()}.items() <= metrics.items()
    assert {"credit", "pack", "forward", "backward", "optimizer", "publish"} == set(report.seconds)


def test_events_see_the_metrics_and_losses_see_the_state_of_the_start_of_the_step(make_trainer, reinforce, group) -> None:
    seen = []

    def loss(outputs, batch, state):
        seen.append(state["steps"])
        return LossOut(-outputs["logp"])

    def credit(group, state):
        return torch.ones(len(group.trajectories)), {**state, "credited": state["credited"] + 1}

    def optimizer_step(state, metrics):
        assert metrics["grad_norm"].value > 0
        return {**state, "steps": state["steps"] + 1}

    changes = {
        "credit": credit,
        "terms": (Term(name="policy", loss=loss),),
        "init": lambda: {"steps": 0, "credited": 0, "ended": 0},
        "events": {
            "optimizer_step": optimizer_step,
            "iteration_end": lambda state, metrics: {**state, "ended": state["ended"] + ("reward/mean" in metrics)},
        },
    }
    trainer = make_trainer(reinforce(changes=changes), minibatches=2)
    for _ in range(2):
        trainer.start() if trainer.version == 0 else None
        trainer.accumulate([group(0), group(1)])
        trainer.finish_step()
    assert seen == [0, 1, 2, 3]
    assert trainer._state == {"steps": 4, "credited": 4, "ended": 2}


def test_the_reference_is_the_policy_at_the_start(make_trainer, from_reference, group, network) -> None:
    trainer = make_trainer(from_reference)
    metrics, _ = one_step(trainer, [group(0, model=network)])
    assert metrics["algorithm/distance"] == 0.0
    trainer.accumulate([group(1, model=network)])
    assert trainer.finish_step().metrics["algorithm/distance"].value > 0.01


# --- settings ----------------------------------------------------------------------------------------------------------------


def test_a_group_of_one_is_refused_where_siblings_are_compared(reinforce) -> None:
    check(TrainerConfig(), reinforce(changes={"group_baseline": False}), 1)
    check(TrainerConfig(), reinforce(), 2)
    with pytest.raises(ConfigError, match="a group of one has none"):
        check(TrainerConfig(), reinforce(), 1)


def test_temperatures_have_to_agree(reinforce) -> None:
    check(TrainerConfig(temperature=0.8), aipo.Config(), 8, Sampling(temperature=0.8))
    with pytest.raises(ConfigError, match="disagree on the temperature"):
        check(TrainerConfig(), aipo.Config(), 8, Sampling(temperature=0.8))


def test_learning_rates_by_hand() -> None:
    def rates(**config):
        return [TrainerConfig(lr=1.0, **config).learning_rate(step) for step in (0, 1, 2, 3, 4, 6, 9)]

    assert rates() == [1.0] * 7
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert rates(warmup_steps=2, schedule="linear", schedule_steps=6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    expected = [0.5, 1.0, 1.0, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1, 0.1]
    assert rates(warmup_steps=2, schedule="cosine", schedule_steps=6, final_lr=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    "config",
    [{"lr": 0.0}, {"temperature": 0.0}, {"schedule": "linear"}, {"epochs": 0}, {"packing": "boxes"}, {"max_lag": -1}],
)
def test_settings_that_cannot_work_are_refused_when_they_are_made(config) -> None:
    with pytest.raises(ConfigError, match="the trainer does not work with this config"):
        TrainerConfig(**config)
