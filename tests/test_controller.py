"""The controller on fake executors of a few lines, under real and virtual schedules."""

import asyncio

import pytest
from fakes import PROMPTS, Generator, Records, Rewarder, Trainer, small

from freerun.controller import Controller
from freerun.errors import AllFailed, ConfigError, DataError, RewardError
from freerun.placement.base import ExecutorSpec
from freerun.placement.inline import InlinePlacement
from freerun.schedule import Stream
from freerun.types import Sampling


def run(config, *, fails=0, reward=None, placement=None, prompts=PROMPTS, generators=1):
    """Run a controller on the fakes; returns (controller, the trainer's history, records)."""

    async def go():
        place = placement or InlinePlacement(schedule="serial")
        specs = [ExecutorSpec(name=f"generator-{i}", factory=Generator, args=(fails,)) for i in range(generators)]
        specs += [
            ExecutorSpec(name="rewarder", factory=Rewarder, args=(reward,)),
            ExecutorSpec(name="trainer", factory=Trainer),
        ]
        records = Records()
        try:
            handles = await place.spawn(specs)
            controller = Controller(
                config,
                placement=place,
                generators=[handles[s.name] for s in specs[:generators]],
                rewarder=handles["rewarder"],
                trainer=handles["trainer"],
                prompts=prompts,
                heldout=PROMPTS[:5],
                sampling=Sampling(),
                eval_sampling=Sampling(temperature=0.0),
                accuracy=lambda r: float(r.value > 0),
                sink=records,
                seed=3,
            )
            await controller.run()
            return controller, await handles["trainer"].call("history", deadline=5.0), records
        finally:
            await place.stop()

    return asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("max_lag", [0, 1, 3])
@pytest.mark.parametrize("schedule", ["serial", "threads"])
def test_every_step_trains_its_items_once_and_within_the_lag_bound(max_lag, schedule):
    controller, history, records = run(small(max_lag=max_lag, window=3), placement=InlinePlacement(schedule=schedule))
    items = [i for _, taken, _, _ in history for i in taken]
    assert len(history) == 12
    assert all(len(taken) == 3 for _, taken, _, _ in history)
    assert len(items) == len(set(items))
    assert max(lag for _, _, lags, _ in history for lag in lags) <= controller.intake.admission.lag_bound
    assert [s.step for s in records.steps] == list(range(1, 13))
    controller.intake.admission.audit()


def test_lag_zero_trains_only_on_the_current_version():
    _, history, _ = run(small(max_lag=0))
    assert all(lag == 0 for _, _, lags, _ in history for lag in lags)


def test_generators_given_every_third_version_work_in_rounds_of_one_version_at_lags_0_to_2():
    controller, history, _ = run(small(max_lag=2, publish_every=3, final_eval_prompts=0, eval_every=0))
    assert [set(lags) for _, _, lags, _ in history] == [{0}, {1}, {2}] * 4
    assert sorted(i for _, taken, _, _ in history for i in taken) == list(range(36))
    # What a round works with stays readable until the next.
    assert [version - version % 3 in keep for version, _, _, keep in history] == [True] * 12
    controller.intake.admission.audit()


def test_a_run_that_ends_between_two_rounds_is_judged_by_its_last_version():
    controller, _, records = run(small(max_lag=3, publish_every=4, steps=6))
    assert controller.ref.version == controller.version == 6
    assert records.evaluations[-1].step == 6


def test_the_lag_bound_holds_however_rarely_versions_are_given_out():
    for publish_every in (1, 2, 4):
        controller, history, _ = run(small(max_lag=3, publish_every=publish_every, window=2))
        assert max(lag for _, _, lags, _ in history for lag in lags) <= controller.intake.admission.lag_bound


def test_a_run_whose_slots_would_never_become_free_is_refused():
    with pytest.raises(ConfigError, match="wait for itself"):
        run(small(max_lag=1, publish_every=3))


def test_asynchronous_data_is_older_than_synchronous_data():
    def duration(executor, method):
        return {"advance": 1.0, "accumulate": 3.0}.get(method, 0.1)

    _, history, _ = run(small(max_lag=2, steps=20), placement=InlinePlacement(schedule="virtual", duration=duration))
    lags = [lag for _, _, step_lags, _ in history[5:] for lag in step_lags]
    assert max(lags) == 2


def test_versions_that_generators_hold_are_kept_at_publication():
    _, history, _ = run(small(max_lag=2))
    assert all(version in keep for version, _, _, keep in history)


def test_evaluations_happen_before_during_and_after_and_do_not_disturb_the_ledger():
    controller, _, records = run(small())
    splits = [(e.split, e.step, e.count) for e in records.evaluations]
    assert splits == [("heldout", 0, 5), ("heldout-quick", 4, 3), ("heldout-quick", 8, 3), ("heldout", 12, 5)]
    assert controller.intake.admission.counts()["admitted"] == 36


def test_a_failed_group_is_generated_again():
    controller, history, _ = run(small(final_eval_prompts=0, eval_every=0), fails=2)
    assert len(history) == 12
    assert controller.intake.admission.failures.total() >= 1
    controller.intake.admission.audit()


def test_when_everything_fails_the_run_stops_and_names_the_last_failure():
    with pytest.raises(AllFailed, match="made to fail"):
        run(small(), fails=10**9)


def test_a_reward_that_is_not_finite_ends_the_run_with_the_rewarders_error():
    with pytest.raises(RewardError, match="not finite"):
        run(small(final_eval_prompts=0), reward="nan")


def test_uniform_groups_are_dropped_with_their_reason_and_replaced():
    controller, history, _ = run(small(skip_uniform=True, max_skips=2), reward=1.0)
    counts = controller.intake.admission.counts()
    assert len(history) == 12
    assert counts["dropped/uniform rewards"] > 0
    controller.intake.admission.audit()


def test_two_generators_share_the_load():
    _, history, records = run(small(), generators=2)
    assert len(history) == 12
    assert {e.executor for e in records.events if e.what == "generate"} == {"generator-0", "generator-1"}


def test_an_empty_training_set_is_refused():
    with pytest.raises(DataError, match="training set is empty"):
        run(small(), prompts=[])


def test_a_micro_batch_larger_than_the_step_is_refused():
    with pytest.raises(ConfigError, match="stream is larger"):
        run(small(stream=4))


def test_every_epoch_of_prompts_is_a_permutation_fixed_by_the_seed():
    first, again, other = (Stream(PROMPTS, seed) for seed in (1, 1, 2))
    epochs = [[first.at(e * 20 + i).uid for i in range(20)] for e in range(-1, 3)]
    assert all(sorted(epoch) == sorted(p.uid for p in PROMPTS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[1] == [again.at(i).uid for i in range(20)] != [other.at(i).uid for i in range(20)]


def test_idle_executors_say_why():
    _, _, records = run(small())
    reasons = {e.detail.get("why", "") for e in records.events}
    assert any("waiting for groups" in r for r in reasons)


def test_an_evaluation_that_is_under_way_when_training_ends_is_finished():
    config = small(steps=5, eval_every=4, eval_prompts=5, final_eval_prompts=5, max_lag=4)
    place = InlinePlacement(schedule="virtual", duration=lambda name, method: 10.0 if method == "advance" else 0.1)
    _, _, records = run(config, placement=place)
    # The generator is given the questions of step 4 right before step 5, the last, is made.
    assert [(e.split, e.step) for e in records.evaluations] == [("heldout", 0), ("heldout-quick", 4), ("heldout", 5)]
