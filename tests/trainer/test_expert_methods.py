"""The methods that learn from other people's data, in the trainer: what they do with it, and what they say if it is not all
there."""

from dataclasses import replace

import pytest
import torch

from freerun.algorithms.language import alol, chord, grpo, pear, sophia
from freerun.errors import ConfigError, DataError, MissingColumn
from freerun.types import Example, Prompt, RewardResult, Source


def example(source, *, rewards=(), logps=()):
    scored = tuple(map(RewardResult, rewards))
    return Example(uid="e", prompt=Prompt("e", "2+2="), responses=("4", "5"), rewards=scored, logps=logps, source=source)


DEMONSTRATION = example(Source.EXPERT)
LOGPS = ((-1.0, -0.5), (-2.0, -0.5))


def made(group, version):
    """The group as if `version` had sampled it."""
    trajectories = tuple(replace(t, version_T=torch.where(t.action_T, version, -1).int()) for t in group.trajectories)
    return replace(group, trajectories=trajectories)


def step(trainer, items):
    trainer.accumulate(items)
    return trainer.finish_step().metrics


def test_chord_lowers_the_share_of_the_expert_step_by_step_and_goes_on_where_its_checkpoint_was(make_trainer, group, tmp_path):
    config = chord.Config(peak=0.9, valley=0.1, decay=2, weight="none")
    trainer, shares = make_trainer(config), []
    trainer.start()
    for version in range(2):
        shares.append(step(trainer, [made(group(version), version), DEMONSTRATION])["algorithm/mixing"].value)
    trainer.save(tmp_path / "a")
    resumed = make_trainer(config)
    resumed.load(tmp_path / "a")
    resumed.start()
    for version in range(2, 4):
        shares.append(step(resumed, [made(group(version), version), DEMONSTRATION])["algorithm/mixing"].value)
    assert shares == pytest.approx([0.9, 0.5, 0.1, 0.1])


def test_the_step_of_chord_does_not_depend_on_micro_batches_of_which_some_hold_no_demonstration(make_trainer, group):
    items, norms = [group(0), group(1), DEMONSTRATION], []
    for micro_tokens in (1024, 14):
        trainer = make_trainer(chord.Config(weight="none", peak=0.5, valley=0.5), micro_tokens=micro_tokens)
        trainer.start()
        norms.append(step(trainer, items)["grad_norm"].value)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 0


def test_chord_without_demonstrations_is_grpo_with_a_smaller_loss(make_trainer, group):
    losses = []
    for config in (chord.Config(peak=0.25, valley=0.25), grpo.Config(reduction="token_mean")):
        trainer = make_trainer(config)
        trainer.start()
        losses.append(step(trainer, [group(0), group(1)])["grad_norm"].value)
    assert losses[0] == pytest.approx(0.75 * losses[1], rel=1e-5)


def test_sophia_trains_on_what_was_selected_and_counts_the_rest(make_trainer):
    trainer = make_trainer(sophia.Config())
    trainer.start()
    metrics = step(trainer, [example(Source.DATASET, rewards=(1.0, 0.0))])
    alone = make_trainer(sophia.Config())
    alone.start()
    chosen = replace(example(Source.DATASET, rewards=(1.0,)), responses=("4",))
    # The unselected response stays in the denominator, so a data set holds selected ones only.
    assert metrics["grad_norm"].value == pytest.approx(step(alone, [chosen])["grad_norm"].value / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "items", "error", "named"),
    [
        (chord.Config(), [example(Source.DATASET, rewards=(1.0, 0.0))], MissingColumn, "logp_behaviour"),
        (chord.Config(), [example(Source.DATASET, logps=LOGPS)], DataError, "2 trajectories, 0 rewards"),
        (sophia.Config(), [example(Source.DATASET)], DataError, "2 trajectories, 0 rewards"),
        (alol.Config(signal="reward"), [example(Source.DATASET)], DataError, "2 trajectories, 0 rewards"),
        (alol.Config(), [example(Source.DATASET, rewards=(1.0, 0.0))], ConfigError, "value_reference"),
        (pear.Config(), [example(Source.DATASET, rewards=(1.0, 0.0))], MissingColumn, "logp_behaviour"),
    ],
)
def test_data_that_a_method_needs_and_does_not_get_is_an_error_that_names_it(make_trainer, config, items, error, named):
    trainer = make_trainer(config)
    with pytest.raises(error, match=named):
        trainer.start()
        step(trainer, items)


def test_a_start_with_pear_needs_the_log_probs_of_every_author(make_trainer):
    known = example(Source.EXPERT, logps=LOGPS)
    make_trainer().warm_start([known, known], pear.Config(), 1e-3)
    with pytest.raises(ConfigError, match="logp_behaviour"):
        make_trainer().warm_start([known, DEMONSTRATION], pear.Config(), 1e-3)
