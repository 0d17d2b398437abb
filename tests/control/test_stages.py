"""Methods with several phases, as whole runs of a second on the point: they go through all of them, repeat and resume."""

import shutil
from dataclasses import replace

import pytest

from freerun.actors.environment import ActorConfig
from freerun.algorithms.control import calql, famo2o_iql, prdc, unio4, wsrl
from freerun.env_schedule import EnvSchedule
from freerun.recipes.base import PlacementConfig, RecordsConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.tasks.point import PointConfig, PointData
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig, ReplayConfig
from tests.control.test_runs import learning, run, same, state, told

DATA, REPLAY = Portion(source="dataset"), Portion(source="replay")
OFFLINE = Phase(name="offline", updates=20, sources=(DATA,))
UNIO4 = ("values", "model", "clone", "improve", "old", "policy", "value")


def run_of(algorithm, *phases, replay=True, **trainer) -> ControlRun:
    return ControlRun(
        env=PointConfig(steps=5),
        algorithm=algorithm,
        control=EnvSchedule(phases=phases, chunk=4, updates=4, evaluations=2, eval_episodes=2, final_eval_episodes=2),
        sources=(DatasetConfig(data=PointData(episodes=8)), *([ReplayConfig(capacity=1000)] if replay else [])),
        actor=ActorConfig(envs=2, picture_frames=0),
        trainer=ControlTrainerConfig(**{"batch": 16, **trainer}),
        placement=PlacementConfig(kind="inline", schedule="serial"),
        records=RecordsConfig(keep_checkpoints=100),
    )


def stage(name: str, *on: str) -> Phase:
    return Phase(name=name, updates=20, off=tuple(term for term in UNIO4 if term not in on))


RUNS = {
    "calql": run_of(calql.Config(hidden=(8,), num_actions=2), OFFLINE, Phase(env_steps=64, start=16, sources=(DATA, REPLAY))),
    "wsrl": run_of(
        wsrl.Config(hidden=(8,), num_actions=2, members=3),
        OFFLINE,
        Phase(name="warm-up", env_steps=32, utd=0.0),
        Phase(env_steps=64, utd=2.0, every={"actor": 4}, settings={"conservatism": 0.0}, sources=(REPLAY,)),
    ),
    "famo2o": run_of(famo2o_iql.Config(hidden=(8,)), OFFLINE, Phase(env_steps=64, start=16, settings={"online": 1.0})),
    "unio4": run_of(
        unio4.Config(hidden=(8,), members=2, horizon=3, review_every=5),
        stage("values", "values", "model"),
        stage("clone", "clone"),
        stage("improve", "improve", "old"),
        Phase(env_steps=64, off=UNIO4[:5]),
        replay=False,
        observations="data",
        epochs=2,
        minibatches=2,
    ),
    "prdc": run_of(prdc.Config(hidden=(8,)), OFFLINE, replay=False, observations="data"),
}
KINDS = pytest.mark.parametrize("recipe", list(RUNS.values()), ids=list(RUNS))


@KINDS
def test_every_stage_is_gone_through_and_a_resumed_run_equals_the_unbroken_one(recipe, tmp_path) -> None:
    outcome, rows = run(recipe, tmp_path / "unbroken")
    assert outcome.finished
    assert [event["detail"]["name"] for event in told(tmp_path / "unbroken", "phase")] == [
        p.name for p in recipe.control.phases
    ]
    often = replace(recipe, control=replace(recipe.control, checkpoint_every=4))
    run(often, tmp_path / "broken")
    for folder in (tmp_path / "broken" / "checkpoints").glob("step-*"):
        if folder.name != "step-00000004":
            shutil.rmtree(folder)
    resumed, again = run(often, tmp_path / "broken", resume=True)
    assert resumed.finished
    assert learning(again) == learning(rows)
    assert same(state(tmp_path / "unbroken"), state(tmp_path / "broken"))


def test_wsrl_learns_nothing_while_it_warms_up_and_looks_at_no_data_afterwards(tmp_path) -> None:
    _, rows = run(RUNS["wsrl"], tmp_path / "run")
    by_phase = [[row for row in rows if row["phase"] == phase] for phase in range(3)]
    assert sum(row["updates"] for row in by_phase[1]) == 0
    assert all("algorithm/gap" in row for row in by_phase[0])
    assert by_phase[2] and not any("algorithm/gap" in row for row in by_phase[2])


def test_unio4_trains_in_each_stage_what_belongs_to_it(tmp_path) -> None:
    _, rows = run(RUNS["unio4"], tmp_path / "run")
    trained = [{name[5:] for row in rows if row["phase"] == phase for name in row if name[:5] == "loss/"} for phase in range(4)]
    assert trained == [{"values", "model"}, {"clone"}, {"improve"}, {"policy", "value"}]
