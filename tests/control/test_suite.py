"""The protocol of D4RL in miniature: one setting per method, last policies, scores between the references of the data."""

import json
from dataclasses import replace

import pytest
import torch
from worlds import COUNT

from freerun import config as configs
from freerun import suite
from freerun.actors.environment import GymConfig
from freerun.cli import main
from freerun.datasets.base import Episodes
from freerun.datasets.files import write_npz
from freerun.datasets.grades import Grade
from freerun.tasks import grades
from freerun.trainer.control_config import DatasetConfig

EPISODES = 20


def recorded(spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions around a half, which pays best, and what `Count` pays for them, of all steps of `EPISODES` episodes."""
    noise = torch.randn(5 * EPISODES, 1, generator=torch.Generator().manual_seed(seed))
    action = (0.5 + spread * noise).clamp(-1.0, 1.0)
    return action, -((3.0 * action[:, 0] - 1.5) ** 2)


@pytest.fixture
def counting(tmp_path, monkeypatch) -> None:
    """Data sets of `Count`, of a policy that is nearly right and of one that is far off, who are the references too."""
    monkeypatch.setattr(grades, "MAKINGS", {"count": grades.Making(env=GymConfig(id=COUNT), steps=1, size=1)})
    monkeypatch.setattr(suite, "SIZES", {"count": suite.Size(hidden=(8,), batch=32, lr=1e-2, updates=100)})
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))
    made = {"random": recorded(2.0, 0), "expert": recorded(0.05, 1)}
    low, high = (float(made[name][1].sum()) / EPISODES for name in ("random", "expert"))
    place = torch.arange(5).repeat(EPISODES)
    for name, (action, reward) in made.items():
        columns = {
            "obs": place[:, None].float(),
            "next_obs": place[:, None].float() + 1.0,
            "action": action,
            "reward": reward,
            "terminated": torch.zeros(5 * EPISODES, dtype=torch.bool),
            "truncated": place == 4,
            "episode": torch.arange(EPISODES).repeat_interleave(5),
            "step": place.int(),
        }
        write_npz(Grade(env="count", grade=name).path, Episodes(name=name, columns=columns, about={"scores": [low, high]}))


ASKED = {"envs": ("count",), "grades": ("random", "expert"), "seeds": 1}


def test_the_references_score_0_and_100(counting) -> None:
    assert suite.normalised(Grade(env="count", grade="random")) == pytest.approx(0.0, abs=1e-4)
    assert suite.normalised(Grade(env="count", grade="expert")) == pytest.approx(100.0, abs=1e-4)


@pytest.mark.parametrize("method", suite.METHODS)
def test_a_method_has_one_setting_for_all_data_sets_and_never_acts(method, counting) -> None:
    first, second = (suite.config_of(method, Grade(env="count", grade=grade)) for grade in ("random", "expert"))
    assert configs.dump(replace(first, sources=second.sources)) == configs.dump(second)
    assert [type(source) for source in first.sources] == [DatasetConfig]
    assert [(phase.env_steps, phase.updates) for phase in first.control.phases] == [(0, 100)]
    assert suite.config_of(method, Grade(env="count", grade="random"), updates=7).control.phases[0].updates == 7


@pytest.mark.parametrize("method", suite.METHODS)
def test_every_method_runs_by_the_protocol(method, counting, tmp_path) -> None:
    asked = suite.Asked(methods=(method,), updates=4, **{**ASKED, "grades": ("random",)})
    results = suite.run(asked, tmp_path / "results.json")
    ran = results["count/random"][method]["0"]
    low, high = Grade(env="count", grade="random").build().scores
    assert ran["score"] == pytest.approx(100.0 * (ran["return"] - low) / (high - low))
    assert not ran["diverged"]


def test_who_imitates_an_expert_scores_like_one(counting, tmp_path) -> None:
    results = suite.run(suite.Asked(methods=("bc",), **ASKED), tmp_path / "results.json")
    assert results["count/expert"]["bc"]["0"]["score"] == pytest.approx(100.0, abs=5.0)


def test_what_was_run_is_not_run_again_unless_its_setting_is_another(counting, tmp_path, monkeypatch) -> None:
    path, ran = tmp_path / "results.json", []

    def played(config, *, seed):
        ran.append((config.control.phases[0].updates, seed))
        return {"return": -1.0, "score": 50.0, "diverged": 0.0, "cpu": 0.0}

    monkeypatch.setattr(suite, "play", played)
    asked = suite.Asked(methods=("bc",), updates=3, **ASKED)
    first = suite.run(asked, path)
    assert suite.run(asked, path) == first
    assert ran == [(3, 0), (3, 0)], "two data sets"
    suite.run(replace(asked, seeds=2), path)
    suite.run(replace(asked, updates=5, grades=("expert",)), path)
    assert ran[2:] == [(3, 1), (3, 1), (5, 0)]
    assert set(json.loads(path.read_text())) == {"count/random", "count/expert"}


def test_the_table_on_the_terminal_has_a_row_for_each_data_set_and_their_average(counting, tmp_path, capsys) -> None:
    words = ["--methods", "bc", "td3-bc", "--envs", "count", "--grades", "random", "--seeds", "2", "--updates", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--suite", "d4rl-mini", *words, "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if "±" in line or "average" in line] == ["count/random", "average"]
    assert "td3_bc, seed 1" in said
    assert (tmp_path / "out" / "results.json").is_file()
