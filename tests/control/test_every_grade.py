"""Data sets of every environment that has a making, in miniature: from one command to policies that are judged on them. Nothing
here lists environments."""

import json
from dataclasses import replace

import minari
import numpy as np
import pytest
from gymnasium import spaces as kinds

from freerun import suite
from freerun.algorithms.control import sac
from freerun.cli import main
from freerun.datasets.files import MinariConfig
from freerun.datasets.grades import GRADES, Grade
from freerun.tasks import grades
from tests.control.recorded import same

STEPS, ROWS, LENGTH = 160, 80, 10


@pytest.fixture(params=list(grades.MAKINGS))
def name(request, tmp_path, monkeypatch) -> str:
    """The name of an environment whose episodes, networks and data sets are small."""
    making = grades.MAKINGS[request.param]
    small = replace(
        making,
        env=replace(making.env, max_steps=LENGTH),
        steps=STEPS,
        size=ROWS,
        algorithm=sac.Config(hidden=(8,)),
        batch=8,
        start=STEPS // 2,
        chunk=5,
        judge_every=STEPS // 2,
    )
    monkeypatch.setattr(grades, "MAKINGS", {request.param: small})
    monkeypatch.setattr(grades, "REFERENCE", 4)
    monkeypatch.setattr(grades, "JUDGED", 2)
    # Eighty updates may well make a policy that is worse than chance, which is refused; this is about all that comes after.
    monkeypatch.setattr(grades, "_ended", lambda chunks: [-1e6])
    monkeypatch.setattr(suite, "SIZES", {request.param: suite.Size(hidden=(8,), batch=8)})
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))
    return request.param


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


def test_grades_of_every_environment_are_made_read_exported_and_learned_from(name, tmp_path, capsys) -> None:
    run("dataset", "make", name)
    made = {grade: Grade(env=name, grade=grade).build() for grade in GRADES}
    world = grades.MAKINGS[name].env.build()
    for grade, data in made.items():
        assert data.columns["obs"].shape[1:] == world.spaces.obs
        assert data.columns["action"].shape[1:] == (world.spaces.actions,)
        assert max(data.lengths) <= LENGTH
        assert data.num_rows <= STEPS if grade == "medium-replay" else data.num_rows >= ROWS
        assert data.scores == made["random"].scores
    run("dataset", "show", f"{name}/medium")
    assert "terminated" in capsys.readouterr().out

    run("dataset", "export", f"{name}/medium", str(tmp_path / "minari"), "--id", f"freerun/{name}-v0")
    folder = tmp_path / "minari" / "freerun" / f"{name}-v0"
    assert same(MinariConfig(source=str(folder)).build(), made["medium"])
    theirs = minari.MinariDataset(folder / "data")
    first, space = next(iter(theirs.iterate_episodes())), world.inner.observation_space
    seen = first.observations if isinstance(space, kinds.Box) else {n: part[0] for n, part in first.observations.items()}
    flat = seen[0] if isinstance(space, kinds.Box) else kinds.flatten(space, seen)
    assert np.allclose(flat, made["medium"].columns["obs"][0].numpy())
    assert theirs.spec.env_spec.id == grades.MAKINGS[name].env.id
    world.close()

    words = ["--methods", "bc", "iql", "--envs", name, "--grades", "medium", "medium-expert", "--seeds", "1", "--updates", "4"]
    run("eval", "--suite", "d4rl-mini", *words, "--out", str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {key: set(found) for key, found in results.items()} == {
        f"{name}/{grade}": {"data", "bc", "iql"} for grade in ("medium", "medium-expert")
    }
    assert not any(ran["0"]["diverged"] for found in results.values() for key, ran in found.items() if key != "data")
