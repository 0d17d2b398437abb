"""Recorded episodes: every format becomes the same columns, what cannot be trained on is refused by name, and grades differ in
how good the policy was."""

import json
import os
from collections.abc import Callable

import h5py
import minari
import numpy as np
import pytest
import torch
from worlds import COUNT, COUNT_DISCRETE

from freerun.actors.environment import GymConfig
from freerun.algorithms.control import sac
from freerun.cli import main
from freerun.datasets.base import Episodes, joined
from freerun.datasets.files import FileConfig, MinariConfig, from_d4rl, write_npz
from freerun.datasets.grades import GRADES, Grade
from freerun.datasets.minari import write
from freerun.errors import ConfigError, DataError, FreerunError
from freerun.tasks import grades
from tests.control.recorded import LENGTHS, columns, episodes, same


def run(*arguments: str) -> None:
    """`freerun` with these arguments, which succeeds."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def with_value(name: str, row: int, value: float | bool) -> dict[str, torch.Tensor]:
    column = columns()[name].clone()
    column[row] = value
    return {name: column}


def test_returns_and_lengths_are_those_of_each_episode() -> None:
    assert episodes().returns == [6.0, 9.0]
    assert episodes().lengths == list(LENGTHS)


@pytest.mark.parametrize(
    ("changed", "episode", "field", "said"),
    [
        (with_value("reward", 4, float("nan")), 1, "reward", "finite"),
        (with_value("obs", 1, float("inf")), 0, "obs", "finite"),
        (with_value("action", 2, 1.5), 0, "action", "[-1, 1]"),
        (with_value("terminated", 0, True), 0, "terminated", "only in the last step"),
        (with_value("truncated", 3, True), 1, "truncated", "only in the last step"),
        (with_value("truncated", 2, True), 0, "truncated", "never together"),
        (with_value("step", 1, 2), 0, "step", "0, 1, 2"),
        (with_value("next_obs", 3, 9.0), 1, "next_obs", "follow one another"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_its_episode_and_field(changed, episode, field, said) -> None:
    with pytest.raises(DataError) as caught:
        episodes(**changed)
    message = str(caught.value)
    assert f"episode {episode}" in message
    assert f"'{field}'" in message
    assert said in message


@pytest.mark.parametrize("name", ["obs", "action", "terminated", "step"])
def test_columns_of_other_lengths_are_refused_by_name(name) -> None:
    with pytest.raises(DataError, match=rf"'{name}'[^§]*4 rows[^§]*5 rows"):
        episodes(**{name: columns()[name][:4]})


def test_an_episode_in_several_places_is_refused() -> None:
    with pytest.raises(DataError, match="several places"):
        episodes(episode=torch.tensor([0, 0, 1, 0, 0]))


def test_whole_numbers_as_rewards_are_refused_since_discounting_would_round_them() -> None:
    with pytest.raises(DataError, match=r"'reward'[^§]*int64"):
        episodes(reward=torch.tensor([1, 2, 3, 4, 5]))


def test_a_missing_column_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'next_obs'"):
        Episodes(name="two", columns={k: v for k, v in columns().items() if k != "next_obs"})


def test_joined_data_sets_number_their_episodes_anew() -> None:
    both = joined("both", [episodes(), episodes()])
    assert both.lengths == [*LENGTHS, *LENGTHS]
    assert both.returns == [6.0, 9.0, 6.0, 9.0]


def test_our_own_format_comes_back_bit_for_bit(tmp_path) -> None:
    made = Episodes(name="two", columns=columns(), about={"env": "Some-v0", "scores": [1.0, 2.0]})
    write_npz(tmp_path / "two.npz", made)
    read = FileConfig(path=str(tmp_path / "two.npz")).build()
    assert same(read, made)
    assert (read.about, read.scores) == ({"env": "Some-v0", "scores": [1.0, 2.0]}, (1.0, 2.0))
    assert os.listdir(tmp_path) == ["two.npz"]


# --- D4RL --------------------------------------------------------------------------------------------------------------------


def d4rl(**more: np.ndarray) -> dict[str, np.ndarray]:
    """The two episodes as D4RL has them."""
    own = columns()
    return {
        "observations": own["obs"].numpy(),
        "actions": own["action"].numpy(),
        "rewards": own["reward"].numpy(),
        "terminals": own["terminated"].numpy(),
        "timeouts": own["truncated"].numpy(),
        **more,
    }


def test_with_next_observations_every_step_of_d4rl_is_kept() -> None:
    assert same(from_d4rl("two", d4rl(next_observations=columns()["next_obs"].numpy())), episodes())


def test_without_them_the_step_whose_successor_nobody_saw_is_left_out() -> None:
    read = from_d4rl("two", d4rl())
    assert read.columns["obs"].flatten().tolist() == [0.0, 1.0, 2.0, 4.0]
    # A terminal step gets its own observation: nothing is taken from there.
    assert read.columns["next_obs"].flatten().tolist() == [1.0, 2.0, 2.0, 5.0]
    assert read.columns["terminated"].tolist() == [False, False, True, False]
    assert read.columns["truncated"].tolist() == [False, False, False, True]
    assert read.lengths == [3, 1]


@pytest.mark.parametrize("name", ["observations", "actions", "terminals", "timeouts"])
def test_misaligned_arrays_of_d4rl_are_refused_by_name(name) -> None:
    with pytest.raises(DataError, match=f"'{name}' is misaligned"):
        from_d4rl("two", d4rl(**{name: d4rl()[name][:4]}))


def test_the_same_arrays_in_hdf5_and_npz_are_the_same_episodes(tmp_path) -> None:
    arrays = d4rl(next_observations=columns()["next_obs"].numpy())
    np.savez(tmp_path / "two.npz", **arrays)
    with h5py.File(tmp_path / "two.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.create_group("infos")["qpos"] = np.zeros(3)
    for name in ("two.npz", "two.hdf5"):
        assert same(FileConfig(path=str(tmp_path / name)).build(), episodes())


def test_a_file_that_is_neither_format_is_refused(tmp_path) -> None:
    (tmp_path / "two.hdf5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no HDF5 file"):
        FileConfig(path=str(tmp_path / "two.hdf5")).build()
    with pytest.raises(DataError, match="not found"):
        FileConfig(path=str(tmp_path / "none.npz")).build()


# --- Minari ------------------------------------------------------------------------------------------------------------------


def test_a_minari_data_set_comes_back_as_it_was_written(tmp_path) -> None:
    made = Episodes(name="two", columns=columns(), about={"scores": [-10.0, 0.0]})
    folder = write(tmp_path, "freerun/two-v0", made, env=COUNT)
    read = MinariConfig(source=str(folder)).build()
    assert same(read, made)
    assert read.scores == (-10.0, 0.0)
    assert read.about["env"] == COUNT


def test_minari_itself_reads_what_is_written_in_the_units_of_the_environment(tmp_path) -> None:
    data = minari.MinariDataset(write(tmp_path, "freerun/two-v0", episodes(), env=COUNT) / "data")
    first, second = data.iterate_episodes()
    # Actions from -1 to 1 become -2 to 4.
    assert first.actions.flatten().tolist() == [2.5, -0.5, 4.0]
    assert first.observations.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (first.terminations.tolist(), second.truncations.tolist()) == ([False, False, True], [False, True])


def test_discrete_actions_of_minari_are_counted_from_zero(tmp_path) -> None:
    made = episodes(action=torch.tensor([0, 1, 2, 0, 1]))
    folder = write(tmp_path, "freerun/discrete-v0", made, env=COUNT_DISCRETE)
    (first, _) = minari.MinariDataset(folder / "data").iterate_episodes()
    assert first.actions.tolist() == [2, 3, 4]
    assert same(MinariConfig(source=str(folder)).build(), made)


def test_a_damaged_minari_data_set_is_refused_with_its_episode_and_field(tmp_path) -> None:
    folder = write(tmp_path, "freerun/two-v0", episodes(), env=COUNT)
    (path,) = folder.rglob("*.hdf5")
    with h5py.File(path, "r+") as file:
        shorter = file["episode_1/rewards"][:-1]
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = shorter
    with pytest.raises(DataError, match="episode 1, field 'observations' is misaligned"):
        MinariConfig(source=str(folder)).build()


def test_a_minari_data_set_that_is_not_here_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(DataError, match="'D4RL/hopper/medium-v2' is not here"):
        MinariConfig(source="D4RL/hopper/medium-v2").build()


def planted(folder, tmp_path, *, entry_point, **changes) -> None:
    """Have the metadata of a data set name a function to make its environment with, and lack what else says its spaces."""
    (path,) = folder.rglob("metadata.json")
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"]) | {"entry_point": entry_point, "kwargs": {"path": str(tmp_path / "ran")}}
    metadata["env_spec"] = json.dumps(spec)
    for name, value in changes.items():
        del metadata[name]
        if value is not None:
            metadata[name] = value
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("changes", [{"observation_space": None}, {"action_space": None}, {"observation_space": 3}])
def test_a_minari_data_set_that_would_run_code_to_be_read_is_refused_and_runs_none(changes, tmp_path) -> None:
    folder = write(tmp_path, "freerun/two-v0", episodes(), env=COUNT)
    planted(folder, tmp_path, entry_point="os:mkdir", **changes)
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*_space"):
        MinariConfig(source=str(folder)).build()
    assert not (tmp_path / "ran").exists()


def external(file: h5py.File, name: str, other: str) -> None:
    file[name] = h5py.ExternalLink(other, "/")


def stored_elsewhere(file: h5py.File, name: str, other: str) -> None:
    file.create_dataset(name, shape=(5,), dtype=np.float32, external=[(other, 0, 20)])


def view(file: h5py.File, name: str, other: str) -> None:
    layout = h5py.VirtualLayout(shape=(5,), dtype=np.float32)
    layout[:] = h5py.VirtualSource(other, "x", shape=(5,))
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("lead", [external, stored_elsewhere, view])
@pytest.mark.parametrize("kind", ["d4rl", "minari"])
def test_an_hdf5_file_that_leads_to_other_files_is_refused_by_the_name_that_does(lead, kind, tmp_path) -> None:
    (tmp_path / "secret").write_bytes(bytes(20))
    if kind == "minari":
        folder = write(tmp_path, "freerun/two-v0", episodes(), env=COUNT)
        (path,) = folder.rglob("*.hdf5")
        config: FileConfig | MinariConfig = MinariConfig(source=str(folder))
        name = "episode_1/rewards"
    else:
        path = tmp_path / "two.hdf5"
        with h5py.File(path, "w") as file:
            for name, array in d4rl().items():
                file[name] = array
        config, name = FileConfig(path=str(path)), "rewards"
    with h5py.File(path, "r+") as file:
        del file[name]
        lead(file, name, str(tmp_path / "secret"))
    with pytest.raises(DataError, match=f"leads to other files(.|\n)*{name}"):
        config.build()


def test_a_group_that_contains_itself_is_read_like_any_other(tmp_path) -> None:
    with h5py.File(tmp_path / "two.hdf5", "w") as file:
        for name, array in d4rl().items():
            file[name] = array
        file["loop"] = file["/"]
        file["same"] = h5py.SoftLink("/rewards")
    assert FileConfig(path=str(tmp_path / "two.hdf5")).build().num_rows == 4


@pytest.mark.parametrize("env", ["../../etc", "/etc", "a/b", "", "..", ".hidden"])
def test_the_name_of_a_made_data_set_cannot_lead_out_of_the_cache(env) -> None:
    with pytest.raises(ConfigError, match="no data set of such a name"):
        Grade(env=env)


def test_arrays_of_objects_are_not_unpickled(tmp_path) -> None:
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    rewards = np.array([Planted()] * 5, object)
    np.savez(tmp_path / "two.npz", **d4rl(rewards=rewards))
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*allow_pickle=False"):
        FileConfig(path=str(tmp_path / "two.npz")).build()
    assert not (tmp_path / "ran").exists()


# --- grades ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counting(tmp_path, monkeypatch) -> Callable[[], grades.Making]:
    """`freerun dataset make count` in a cache of the test's own: an environment that SAC learns at once."""
    making = grades.Making(
        env=GymConfig(id=COUNT),
        steps=960,
        size=200,
        algorithm=sac.Config(actor_lr=3e-3, critic_lr=3e-3, hidden=(16,)),
        batch=32,
        start=160,
        judge_every=160,
    )
    monkeypatch.setattr(grades, "MAKINGS", {"count": making})
    monkeypatch.setattr(grades, "REFERENCE", 4)
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "cache"))
    return lambda: making


def test_grades_are_made_by_one_command_and_better_policies_get_higher_returns(counting, capsys) -> None:
    assert grades.missing([Grade(env="count")]) == ["count"]
    with pytest.raises(DataError, match="not made yet"):
        Grade(env="count").build()
    run("dataset", "make", "count")
    made = {name: Grade(env="count", grade=name).build() for name in GRADES}
    mean = {name: sum(data.returns) / len(data.returns) for name, data in made.items()}
    low, high = made["medium"].scores
    assert low < high
    assert mean["random"] < mean["medium"] < mean["expert"]
    assert mean["random"] < mean["medium-expert"] < mean["expert"]
    assert made["medium-replay"].num_rows < 960
    assert all(made[name].num_rows >= 200 for name in ("random", "medium", "expert"))
    for data in made.values():
        # The last episode of each of four environments may be cut short.
        assert len([n for n in data.lengths if n != 5]) <= 4 * (2 if data is made["medium-expert"] else 1)
        assert not data.columns["obs"][data.columns["step"] == 0].any()
    assert grades.missing([Grade(env="count")]) == []
    run("dataset", "list")
    assert "medium-replay" in capsys.readouterr().out


def test_the_same_seed_makes_the_same_data(counting) -> None:
    making = counting()

    def made() -> dict[str, Episodes]:
        return grades.graded("count", making, seed=3, progress=lambda what, share: None)

    first, second = made(), made()
    assert all(same(first[name], second[name]) for name in GRADES)


@pytest.mark.parametrize("name", list(grades.MAKINGS))
def test_every_environment_of_which_data_sets_are_made_can_be_played(name) -> None:
    env = grades.MAKINGS[name].env.build()
    obs = env.reset(0)
    assert obs.shape == env.spaces.obs
    assert env.step(np.zeros(env.spaces.actions, np.float32)).obs.shape == obs.shape
    assert not env.spaces.discrete
    env.close()


def test_an_unknown_environment_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(FreerunError, match="pendulum"):
        grades.make("nowhere")


def test_a_data_set_is_shown_and_exported_on_the_command_line(tmp_path, capsys) -> None:
    made = Episodes(name="two", columns=columns(), about={"env": COUNT})
    write_npz(tmp_path / "two.npz", made)
    run("dataset", "show", str(tmp_path / "two.npz"))
    assert "2, of 2 to 3 steps" in capsys.readouterr().out
    run("dataset", "export", str(tmp_path / "two.npz"), str(tmp_path / "out"), "--id", "freerun/two-v0")
    assert same(MinariConfig(source=str(tmp_path / "out" / "freerun" / "two-v0")).build(), made)
