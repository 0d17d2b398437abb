"""Whole control runs of a second, through the launcher of the command line."""

import asyncio
import base64
import json
import os
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from worlds import COUNT, COUNT_DISCRETE

from freerun import config as configs
from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import bc, dqn, iql, ppo, sac
from freerun.checkpoint import Checkpoints
from freerun.datasets.base import Episodes
from freerun.env_schedule import EnvSchedule
from freerun.errors import AllFailed, ConfigError
from freerun.launch_control import launch_control
from freerun.metrics import Fanout
from freerun.plainfiles import load_values
from freerun.recipes.base import PlacementConfig, RecordsConfig
from freerun.recipes.control_base import ControlRun
from freerun.rundir import RunDirectory, read_log
from freerun.store.mix import Share
from freerun.store.phases import Phase, Portion
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig
from freerun.watch.report import write_report

ONLINE = (Phase(env_steps=96, start=32, random=32),)
BOX, KEYS = GymConfig(id=COUNT), GymConfig(id=COUNT_DISCRETE)


def run_of(algorithm=None, env=BOX, *, phases=ONLINE, **changes) -> ControlRun:
    """Chunks of four steps of two environments, learning and collecting in turns."""
    control = {"chunk": 4, "evaluations": 2, "eval_episodes": 2, "final_eval_episodes": 2, **changes.pop("control", {})}
    return ControlRun(
        **{
            "env": env,
            "algorithm": algorithm or sac.Config(hidden=(8,), actor_lr=1e-2, critic_lr=1e-2),
            "control": EnvSchedule(phases=phases, **control),
            "sources": (ReplayConfig(capacity=1000),),
            "actor": ActorConfig(envs=2, picture_frames=0),
            "trainer": ControlTrainerConfig(batch=16),
            "placement": PlacementConfig(kind="inline", schedule="serial"),
            "records": RecordsConfig(keep_checkpoints=100),
            **changes,
        }
    )


def rollouts(**changes) -> ControlRun:
    control = {"chunks": 2, **changes.pop("control", {})}
    changes.setdefault("trainer", ControlTrainerConfig(epochs=2, minibatches=2, observations="running", rewards="running"))
    return run_of(ppo.Config(hidden=(8,)), KEYS, phases=(Phase(env_steps=160),), sources=(), control=control, **changes)


def run(config: ControlRun, directory, *, resume: bool = False, records: type[Fanout] = Fanout):
    """Run `config` in `directory`; the outcome, and what was measured of each step."""
    checkpoint = None
    if resume:
        checkpoint, _ = Checkpoints(directory / "checkpoints").newest_whole()
        files = RunDirectory.resume(directory, int(checkpoint.name.removeprefix("step-")))
    else:
        files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = records([files])
    try:
        coroutine = launch_control(config, directory, sinks, checkpoint=checkpoint, began=files.elapsed)
        outcome = asyncio.run(asyncio.wait_for(coroutine, 100))
    finally:
        sinks.close()
    return outcome, [row["metrics"] for row in read_log(directory / "metrics.jsonl").rows]


def learning(rows) -> list[dict]:
    """What must repeat: everything measured that is not a duration."""
    timing = ("time/", "throughput/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(timing) and v == v} for row in rows]


def state(directory) -> dict[str, torch.Tensor]:
    """Every tensor of the trainer in the newest checkpoint."""
    newest, _ = Checkpoints(directory / "checkpoints").newest_whole()

    def flat(value, name=""):
        if isinstance(value, torch.Tensor):
            return {name: value}
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {k: v for key, inner in items for k, v in flat(inner, f"{name}/{key}").items()}

    return flat(load_values(newest / "trainer", "trainer"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


def told(directory, what: str) -> list[dict]:
    return [row for row in map(json.loads, (directory / "events.jsonl").read_text().splitlines()) if row["what"] == what]


# --- repeating and resuming --------------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize(
    "recipe", [run_of(), rollouts(), run_of(dqn.Config(hidden=(8,)), KEYS)], ids=["sac", "ppo", "dqn"]
)


@KINDS
def test_a_serial_run_repeats_bit_for_bit(recipe, tmp_path) -> None:
    (first, a), (second, b) = (run(recipe, tmp_path / name) for name in "ab")
    assert learning(a) == learning(b)
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    assert [trial.returns for trial in first.evaluations] == [trial.returns for trial in second.evaluations]


@KINDS
def test_a_resumed_run_equals_the_unbroken_one(recipe, tmp_path) -> None:
    run(recipe, tmp_path / "unbroken")
    often = replace(recipe, control=replace(recipe.control, checkpoint_every=3))
    run(often, tmp_path / "broken")
    for folder in (tmp_path / "broken" / "checkpoints").glob("step-*"):
        if folder.name != "step-00000003":
            shutil.rmtree(folder)
    resumed, rows = run(often, tmp_path / "broken", resume=True)
    assert resumed.finished
    assert learning(rows) == learning(run(recipe, tmp_path / "again")[1])
    assert same(state(tmp_path / "unbroken"), state(tmp_path / "broken"))


def test_another_seed_is_another_run(tmp_path) -> None:
    run(run_of(), tmp_path / "a")
    run(run_of(seed=1), tmp_path / "b")
    assert not same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_the_record_of_a_step_counts_the_chunks_that_it_trained_on(tmp_path) -> None:
    _, rows = run(rollouts(), tmp_path)
    assert [(row["items/trained"], row["items/training"]) for row in rows] == [(2 * (i + 1), 0) for i in range(len(rows))]


# --- limits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["serial", "threads"])
@pytest.mark.parametrize("max_lag", [0, 2])
def test_rollouts_keep_the_lag_bound_of_language(max_lag, schedule, tmp_path) -> None:
    config = rollouts(
        actors=2,
        control={"max_lag": max_lag, "window": 1 if max_lag == 0 else 3},
        placement=PlacementConfig(kind="inline", schedule=schedule),
    )
    outcome, rows = run(config, tmp_path / "run")
    assert outcome.step == 10
    bound = max_lag + (1 if max_lag else 0)
    assert max(row["lag/max"] for row in rows) <= bound
    assert rows[-1]["env/total"] == 160


@pytest.mark.parametrize(("utd", "updates"), [(1.0, 128), (0.25, 32), (3.0, 384)])
def test_updates_per_environment_step_are_what_was_asked_for(utd, updates, tmp_path) -> None:
    _, rows = run(run_of(phases=(Phase(env_steps=160, start=32, utd=utd),)), tmp_path / "run")
    assert sum(row["updates"] for row in rows) == updates
    # In turns: never more updates than the steps so far made due, never a chunk before its turn.
    made = 0
    for row in rows:
        made += row["updates"]
        assert made <= utd * (row["env/total"] - 32)
        assert utd * (row["env/total"] - 32) - made < utd * 8 + max(1, utd * 8)


def test_actors_and_trainer_may_run_ahead_of_each_other_by_as_much_as_allowed(tmp_path) -> None:
    config = run_of(control={"ahead": 4, "lead": 16.0}, actors=2, placement=PlacementConfig(kind="inline", schedule="threads"))
    _, rows = run(config, tmp_path / "run")
    made = 0
    for row in rows:
        made += row["updates"]
        assert made <= row["env/total"] - 32 + 16
    assert made == 64


def test_replay_with_a_largest_age_gives_old_chunks_up(tmp_path) -> None:
    _, rows = run(run_of(control={"max_age": 3}), tmp_path / "run")
    assert max(row["lag/max"] for row in rows if "lag/max" in row) <= 3 + 1  # measured once the version is made
    assert rows[-1]["items/expired"] > 0


# --- phases ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """Actions at random and what they pay in `Count`; half of them is right."""

    num: int = 20

    def build(self) -> Episodes:
        make = torch.Generator().manual_seed(0)
        steps = torch.arange(5).repeat(self.num)
        action = torch.rand(5 * self.num, 1, generator=make) * 2 - 1
        return Episodes(
            name="random",
            columns={
                "obs": steps[:, None].float(),
                "next_obs": steps[:, None].float() + 1.0,
                "action": action,
                "reward": -((3.0 * action[:, 0] - 1.5) ** 2),
                "terminated": torch.zeros(5 * self.num, dtype=torch.bool),
                "truncated": steps == 4,
                "episode": torch.arange(self.num).repeat_interleave(5),
                "step": steps.int(),
            },
            about={"scores": [-30.0, 0.0]},
        )


DATA = DatasetConfig(data=Recorded())


def test_offline_warm_up_and_online_are_phases_of_one_run(tmp_path) -> None:
    phases = (
        Phase(name="offline", updates=40, sources=(Portion(source="dataset"),)),
        Phase(name="warm-up", env_steps=32, utd=0.0, act="greedy"),
        Phase(
            name="online",
            env_steps=64,
            utd=2.0,
            sources=(Portion(source="replay"), Portion(source="dataset", share=Share(1.0, 0.0, 64))),
        ),
    )
    config = run_of(
        iql.Config(hidden=(8,)), phases=phases, sources=(DATA, ReplayConfig(capacity=1000)), control={"updates": 16}
    )
    outcome, rows = run(config, tmp_path / "run")
    assert [event["detail"]["name"] for event in told(tmp_path / "run", "phase")] == ["offline", "warm-up", "online"]
    by_phase = {phase: [row for row in rows if row["phase"] == phase] for phase in (0, 1, 2)}
    assert [sum(row["updates"] for row in by_phase[phase]) for phase in (0, 1, 2)] == [40, 0, 128]
    assert by_phase[0][-1]["env/total"] == 0
    assert rows[-1]["env/total"] == 96
    assert outcome.finished


def test_a_run_without_environment_steps_has_no_actors_and_is_judged(tmp_path) -> None:
    config = run_of(bc.Config(hidden=(8,)), phases=(Phase(updates=200),), sources=(replace(DATA, best_share=0.2),))
    outcome, rows = run(config, tmp_path / "run")
    assert rows[-1]["updates"] == 100
    assert {event["executor"] for event in map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())} <= {
        "controller",
        "judge",
        "trainer",
    }
    assert outcome.evaluations[-1].step == 2


class Impatient(Fanout):
    """Interrupts the run once its first policy is judged."""

    def evaluation(self, record) -> None:
        super().evaluation(record)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_resumed_at_its_beginning_is_not_judged_there_again(tmp_path) -> None:
    stopped, _ = run(run_of(), tmp_path / "run", records=Impatient)
    assert (stopped.finished, stopped.step, len(stopped.evaluations)) == (False, 0, 1)
    outcome, _ = run(run_of(), tmp_path / "run", resume=True)
    assert outcome.evaluations[0] == stopped.evaluations[0]
    assert [trial.step for trial in outcome.evaluations].count(0) == 1
    assert [row["step"] for row in read_log(tmp_path / "run" / "evals.jsonl").rows].count(0) == 1
    unbroken, _ = run(run_of(), tmp_path / "unbroken")
    assert [trial.returns for trial in outcome.evaluations] == [trial.returns for trial in unbroken.evaluations]


@pytest.mark.parametrize("broken", [{"stop": 0}, {"stop": 1}, {"stop": 2}])
def test_a_run_of_phases_resumes_in_any_of_them(broken, tmp_path) -> None:
    phases = (Phase(name="offline", updates=24), Phase(name="online", env_steps=48, utd=1.0))
    config = run_of(iql.Config(hidden=(8,)), phases=phases, sources=(DATA, ReplayConfig(capacity=1000)), control={"updates": 8})
    run(config, tmp_path / "unbroken")
    often = replace(config, control=replace(config.control, checkpoint_every=2))
    run(often, tmp_path / "broken")
    kept = sorted((tmp_path / "broken" / "checkpoints").glob("step-*"))[broken["stop"]]
    for folder in (tmp_path / "broken" / "checkpoints").glob("step-*"):
        if folder != kept:
            shutil.rmtree(folder)
    run(often, tmp_path / "broken", resume=True)
    assert same(state(tmp_path / "unbroken"), state(tmp_path / "broken"))


def test_what_would_never_happen_is_refused_before_anything_starts() -> None:
    for phase in ({"env_steps": 0}, {"env_steps": 5, "updates": 5}, {"env_steps": 5, "start": 5}, {"updates": -1}):
        with pytest.raises(ConfigError, match="cannot be"):
            Phase(**phase)


# --- failures ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fragile:
    """`Count`, whose every `period`-th step in this process raises."""

    period: int
    counter: list

    def build(self, *, picture: bool = False):
        env, fragile = BOX.build(picture=picture), self

        class Wrapped:
            spaces = env.spaces

            def reset(self, seed: int) -> np.ndarray:
                return env.reset(seed)

            def step(self, action: np.ndarray):
                fragile.counter.append(1)
                if len(fragile.counter) % fragile.period == 0:
                    raise RuntimeError("simulator crashed")
                return env.step(action)

            def picture(self) -> None:
                return None

            def close(self) -> None:
                env.close()

        return Wrapped()


def test_environments_that_fail_are_counted_and_the_run_collects_what_it_asked_for(tmp_path) -> None:
    outcome, rows = run(run_of(env=Fragile(17, []), judge_env=BOX), tmp_path / "run")
    assert outcome.finished
    failed = sum(row.get("env/failures/environment_error", 0) for row in rows)
    assert failed == len(told(tmp_path / "run", "failed")) > 3
    assert sum(row.get("env/steps", 0) for row in rows) == 96


def test_a_run_whose_environments_always_fail_ends_with_the_reason(tmp_path) -> None:
    with pytest.raises(AllFailed, match="simulator crashed"):
        run(run_of(env=Fragile(1, []), judge_env=BOX), tmp_path / "run")


def test_a_policy_is_judged_in_the_environment_that_is_named_for_it(tmp_path) -> None:
    outcome, _ = run(run_of(judge_env=GymConfig(id=COUNT, max_steps=3)), tmp_path / "run")
    assert {trial.length for trial in outcome.evaluations} == {3.0}


def test_scores_are_normalised_by_reference_returns(tmp_path) -> None:
    outcome, _ = run(run_of(scores=(-40.0, 10.0)), tmp_path / "run")
    for trial in outcome.evaluations:
        assert trial.score == pytest.approx(2.0 * (sum(trial.returns) / len(trial.returns) + 40.0))


def test_what_is_learned_in_a_second_is_seen_in_the_returns(tmp_path) -> None:
    outcome, _ = run(
        run_of(phases=(Phase(env_steps=320, start=40, random=40),), control={"final_eval_episodes": 1}), tmp_path / "run"
    )
    first, last = outcome.evaluations[0], outcome.evaluations[-1]
    assert last.returns[0] > first.returns[0]


def test_the_report_of_a_run_shows_its_policy_in_moving_pictures_of_before_and_after(tmp_path) -> None:
    env = GymConfig(id="Pendulum-v1", max_steps=8)
    outcome, _ = run(run_of(env=env, actor=ActorConfig(envs=2, picture_frames=4)), tmp_path / "run")
    files = [trial.picture for trial in outcome.evaluations if trial.picture]
    assert len(files) == 2, told(tmp_path / "run", "no picture")
    page = write_report(tmp_path / "run").read_text()
    for name in files:
        picture = (tmp_path / "run" / "pictures" / name).read_bytes()
        assert b"acTL" in picture, "an animated PNG"
        assert base64.b64encode(picture).decode() in page
