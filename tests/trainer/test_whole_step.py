"""What an algorithm may ask of a whole step: columns made from it, a look before the update, a critic, policies of the past."""

import math
from dataclasses import replace

import pytest
import torch

from freerun.algorithms.base import LossOut, Term
from freerun.errors import ConfigError, DataError, MissingColumn, StaleItem
from freerun.ops.reduce import means
from freerun.types import Example, Prompt, RewardResult, Source


def step(trainer, groups):
    trainer.accumulate(groups)
    return trainer.finish_step()


def value_loss(outputs, batch, state):
    return LossOut((outputs["values"] - batch["returns"]) ** 2, means(batch["mask"], values=outputs["values"]))


def whitened(batch, state):
    """Advantages with mean 0 over the tokens of the step; the reward of a trajectory as the return of each of its tokens."""
    mask_BT = batch["mask"]
    mean = batch["advantage"][mask_BT].mean()
    return {"advantage": batch["advantage"] - mean, "returns": batch["reward"][:, None].expand(mask_BT.shape)}


def critic(reinforce):
    """REINFORCE with a critic beside it."""
    value = Term(name="value", loss=value_loss, trains=("value",), outputs=("values",))
    policy = reinforce().build().terms[0]
    return reinforce(
        changes={
            "terms": (policy, value),
            "needs": frozenset({"mask", "advantage", "returns"}),
            "prepare": whitened,
            "uses": frozenset({"mask", "advantage", "reward"}),
            "makes": frozenset({"advantage", "returns"}),
        }
    )


def test_a_critic_learns_the_returns_and_leaves_the_policy_alone(make_trainer, group, reinforce):
    trainer = make_trainer(critic(reinforce), lr=1e-6, critic_lr_share=1e4)
    trainer.start()
    losses = [step(trainer, [replace_versions(group(0), i)]).metrics["loss/value"].value for i in range(30)]
    assert losses[-1] < 0.2 * losses[0]


def replace_versions(group, version):
    trajectories = tuple(replace(t, version_T=torch.where(t.action_T, version, -1).int()) for t in group.trajectories)
    return replace(group, trajectories=trajectories)


def test_columns_of_the_whole_step_reach_every_micro_batch(make_trainer, group, reinforce):
    seen = []

    def loss(outputs, batch, state):
        seen.append(batch["advantage"][batch["mask"]])
        return LossOut(-batch["advantage"] * outputs["logp"])

    algorithm = reinforce(
        changes={
            "terms": (Term(name="policy", loss=loss),),
            "needs": frozenset({"mask", "advantage"}),
            "prepare": lambda batch, state: {"advantage": whitened(batch, state)["advantage"]},
            "uses": frozenset({"mask", "advantage", "reward"}),
            "makes": frozenset({"advantage"}),
        }
    )
    trainer = make_trainer(algorithm, micro_tokens=15)
    trainer.start()
    step(trainer, [group(0), group(1), group(2)])
    assert len(seen) > 1
    assert float(torch.cat(seen).mean()) == pytest.approx(0.0, abs=1e-6)


def chosen(reinforce, seen):
    """REINFORCE on the trajectories above the mean reward alone; the others have no advantage and are not in the mask."""

    def best(batch, state):
        return {
            "mask_selected": batch["mask"] & (batch["advantage"] > 0),
            "advantage": batch["advantage"].clamp(min=0.0),
        }

    def loss(outputs, batch, state):
        seen.append(batch)
        return LossOut(-batch["advantage"] * (outputs["logp"] - batch["logp_reference"]))

    return reinforce(
        changes={
            "terms": (Term(name="policy", loss=loss, mask="mask_selected"),),
            "needs": frozenset({"mask_selected", "advantage", "logp_reference"}),
            "prepare": best,
            "uses": frozenset({"mask", "advantage"}),
            "makes": frozenset({"mask_selected", "advantage"}),
            "advantage_gates": True,
        }
    )


def test_trajectories_that_prepare_leaves_without_advantage_are_not_computed(make_trainer, group, reinforce):
    seen = []
    trainer = make_trainer(chosen(reinforce, seen), micro_tokens=30)
    trainer.start()
    groups = [group(0, rewards=[1.0, 0.0, 0.0, 0.0]), group(1, rewards=[0.0, 0.0, 0.0, 3.0])]
    metrics = step(trainer, groups).metrics
    assert sum(len(batch["mask"]) for batch in seen) == 2
    kept = groups[0].trajectories[0].num_actions + groups[1].trajectories[3].num_actions
    assert metrics["loss/policy"].count == kept
    total = 0.75 * groups[0].trajectories[0].num_actions + 2.25 * groups[1].trajectories[3].num_actions
    assert metrics["advantage/mean"].value == pytest.approx(total / metrics["advantage/mean"].count), "as prepare made it"


def test_a_probe_sees_the_whole_minibatch_and_decides_the_state_of_its_loss(make_trainer, group, reinforce):
    looks, states = [], []

    def probe(outputs, batch, state):
        looks.append(int(batch["mask"].sum()))
        return {"bound": float(outputs["logp"][batch["mask"]].mean()), "looks": state["looks"] + 1}

    def loss(outputs, batch, state):
        states.append(dict(state))
        return LossOut(-batch["advantage"] * outputs["logp"])

    algorithm = reinforce(
        changes={
            "terms": (Term(name="policy", loss=loss),),
            "probe": probe,
            "init": lambda: {"bound": 0.0, "looks": 0},
        }
    )
    trainer = make_trainer(algorithm, micro_tokens=30, minibatches=2)
    trainer.start()
    groups = [group(0), group(1), group(2), group(3)]
    step(trainer, groups)
    assert sum(looks) == sum(t.num_actions for g in groups for t in g.trajectories)
    assert len(looks) == 2
    assert [s["looks"] for s in states] == sorted(s["looks"] for s in states)
    assert {s["looks"] for s in states} == {1, 2}
    assert all(s["bound"] < 0 for s in states)


def test_the_previous_policy_is_the_one_before_the_last_step(make_trainer, group, compared_with):
    trainer = make_trainer(compared_with("logp_previous"), lr=1e-2)
    trainer.start()
    first = step(trainer, [group(0)]).metrics["algorithm/distance"].value
    second = step(trainer, [replace_versions(group(0), 1)]).metrics["algorithm/distance"].value
    assert first == 0.0, "before any step it is the policy itself"
    assert second > 1e-4


def test_a_rebased_reference_is_the_policy_of_that_moment(make_trainer, group, compared_with):
    config = compared_with("logp_reference")
    kept = make_trainer(config, lr=1e-2)
    rebased = make_trainer(replace(config, changes={**config.changes, "rebase": lambda state: True}), lr=1e-2)
    distances = []
    for trainer in (kept, rebased):
        trainer.start()
        step(trainer, [group(0)])
        distances.append(step(trainer, [replace_versions(group(0), 1)]).metrics["algorithm/distance"].value)
    assert distances[0] > 1e-4
    assert distances[1] == 0.0


def test_an_optimiser_without_history_begins_every_step_anew(make_trainer, group, reinforce):
    trainer = make_trainer(reinforce(changes={"forget_moments": True}))
    trainer.start()
    for version in range(3):
        step(trainer, [replace_versions(group(0), version)])
    assert {int(s["step"]) for s in trainer._learner.optimizer.state.values()} == {1}


def test_from_a_step_on_replayed_items_are_left_out_and_a_batch_is_passed_over_once(make_trainer, group, reinforce):
    """ReMix's switch: until then a step of two epochs trains on what it is given, and counts updates in its state."""
    changes = {
        "init": lambda: {"steps": 0, "updates": 0},
        "events": {
            "optimizer_step": lambda state, metrics: {**state, "updates": state["updates"] + 1},
            "iteration_end": lambda state, metrics: {**state, "steps": state["steps"] + 1},
        },
        "fresh_only": lambda state: state["steps"] >= 2,
    }
    trainer, seen = make_trainer(reinforce(changes=changes), epochs=2, max_age=3), []
    trainer.start()
    for version in range(4):
        trainer.accumulate([replace_versions(group(0), version)])
        replayed = [replace(group(item), source=Source.REPLAY) for item in (1, 2)]
        trainer.accumulate(replayed)
        metrics = trainer.finish_step().metrics
        used = {name: metrics[name].value for name in metrics if name.startswith("items/")}
        seen.append((used, trainer._state["updates"]))
    both, fresh = {"items/used/rollout": 1, "items/used/replay": 2}, {"items/used/rollout": 1, "items/unused/replay": 2}
    assert seen == [(both, 2), (both, 4), (fresh, 5), (fresh, 6)]


def test_the_switch_to_fresh_items_survives_a_checkpoint(make_trainer, group, reinforce, tmp_path):
    changes = {
        "init": lambda: {"steps": 0},
        "events": {"iteration_end": lambda state, metrics: {"steps": state["steps"] + 1}},
        "fresh_only": lambda state: state["steps"] >= 1,
    }
    trainer, other = (make_trainer(reinforce(changes=changes), max_age=3) for _ in range(2))
    trainer.start()
    step(trainer, [group(0)])
    trainer.save(tmp_path / "a")
    other.load(tmp_path / "a")
    other.start()
    report = other.accumulate([replace(group(1), source=Source.REPLAY)])
    assert report.groups == 0


def test_checkpoints_hold_the_critic_and_the_policies_of_the_past(make_trainer, group, reinforce, compared_with, tmp_path):
    trainer = make_trainer(critic(reinforce), lr=1e-2)
    trainer.start()
    step(trainer, [group(0)])
    trainer.save(tmp_path / "a")
    other = make_trainer(critic(reinforce), lr=1e-2)
    other.load(tmp_path / "a")
    other.start()
    ours, theirs = (step(t, [replace_versions(group(0), 1)]).metrics for t in (trainer, other))
    assert ours["loss/value"].value == theirs["loss/value"].value
    assert ours["grad_norm"].value == theirs["grad_norm"].value


# --- sources -----------------------------------------------------------------------------------------------------------------


def example(source=Source.EXPERT, *, rewards=(), logps=()):
    return Example(uid="e", prompt=Prompt("e", "2+2="), responses=("4", "5"), rewards=rewards, logps=logps, source=source)


def separate(reinforce):
    """REINFORCE with importance weights on rollouts, likelihood on demonstrations."""

    def policy(outputs, batch, state):
        return LossOut(-batch["advantage"] * (outputs["logp"] - batch["logp_behaviour"]).exp())

    def imitate(outputs, batch, state):
        return LossOut(-outputs["logp"])

    return reinforce(
        changes={
            "terms": (
                Term(name="policy", loss=policy, mask="mask_rollout"),
                Term(name="expert", loss=imitate, mask="mask_expert"),
            ),
            "needs": frozenset({"mask_rollout", "mask_expert", "advantage", "logp_behaviour"}),
        }
    )


def test_demonstrations_and_rollouts_are_kept_apart_in_one_step(make_trainer, group, reinforce):
    alone, mixed = (make_trainer(separate(reinforce), lr=1e-6) for _ in range(2))
    for trainer in (alone, mixed):
        trainer.start()
    rollouts = step(alone, [group(0)]).metrics
    both = step(mixed, [group(0), example()]).metrics
    assert both["loss/policy"].value == pytest.approx(rollouts["loss/policy"].value, rel=1e-5)
    assert both["loss/expert"].value > 0
    assert both["reward/mean"].value == rollouts["reward/mean"].value
    assert math.isfinite(both["grad_norm"].value)
    assert {n: m.value for n, m in both.items() if n.startswith("items/used")} == {
        "items/used/rollout": 1,
        "items/used/expert": 1,
    }


def test_behaviour_log_probs_that_nobody_knows_are_a_missing_column(make_trainer, compared_with):
    trainer = make_trainer(compared_with("logp_proximal"))
    trainer.start()
    scored = example(Source.DATASET, rewards=(RewardResult(1.0), RewardResult(0.0)))
    trainer.accumulate([scored])
    with pytest.raises(MissingColumn, match="logp_behaviour"):
        trainer.finish_step()


def test_log_probs_of_a_data_set_are_its_behaviour_column(make_trainer, compared_with):
    trainer = make_trainer(compared_with("logp_proximal"))
    trainer.start()
    logps = ((-1.0, -2.0), (-3.0, -4.0))
    scored = example(Source.DATASET, rewards=(RewardResult(1.0), RewardResult(0.0)), logps=logps)
    assert step(trainer, [scored]).metrics["tokens/trained"].value == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": (RewardResult(1.0),)}, "2 trajectories, 1 rewards"),
        ({"logps": ((-1.0,), (-1.0, -2.0))}, "response 0: 1 log-probs, 2 tokens"),
        ({}, "2 trajectories, 0 rewards"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(make_trainer, reinforce, changes, message):
    trainer = make_trainer(reinforce())
    trainer.start()
    with pytest.raises(DataError) as error:
        trainer.accumulate([example(Source.DATASET, **changes)])
    assert message in str(error.value)


def test_an_example_longer_than_the_context_is_refused(make_trainer, reinforce):
    long = Example(uid="long", prompt=Prompt("p", "x" * 70), responses=("y",), source=Source.EXPERT)
    with pytest.raises(DataError, match="'long' does not fit the model"):
        make_trainer(reinforce()).accumulate([long])


def test_a_replayed_group_may_be_as_old_as_max_age_and_no_older(make_trainer, group, reinforce):
    trainer = make_trainer(reinforce(), max_lag=0, max_age=2)
    trainer.version = 2
    trainer.accumulate([replace(group(0), source=Source.REPLAY)])
    trainer.version = 3
    with pytest.raises(StaleItem, match="wrong age"):
        trainer.accumulate([replace(group(1), source=Source.REPLAY)])


def test_only_a_recalled_group_may_be_newer_than_the_trainer(make_trainer, group, reinforce):
    trainer = make_trainer(reinforce(), max_lag=1)
    newer = replace_versions(group(0), 3)
    with pytest.raises(StaleItem, match="wrong age"):
        trainer.accumulate([newer])
    trainer.accumulate([replace(newer, source=Source.RECALLED)])


def test_an_algorithm_without_a_critic_cannot_read_values(make_trainer, reinforce):
    with pytest.raises(ConfigError, match="batch columns that this trainer does not have: values"):
        make_trainer(reinforce(changes={"needs": frozenset({"mask", "values"})}))
