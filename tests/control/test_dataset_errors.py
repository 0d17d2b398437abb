"""What is no data set, or is none that may be had, is refused with one clear error."""

import minari
import numpy as np
import pytest
from worlds import COUNT, COUNT_DISCRETE

from freerun.cli import main
from freerun.datasets.files import FileConfig, MinariConfig
from freerun.datasets.minari import write
from freerun.errors import DataError, FreerunError
from tests.control.recorded import episodes, same

D4RL = {
    "observations": np.zeros((2, 1)),
    "actions": np.zeros((2, 1)),
    "rewards": np.zeros(2),
    "terminals": np.array([False, True]),
}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({**D4RL, "observations": np.array([None, 1], dtype=object)}, "plain arrays"),
        ({**D4RL, "rewards": np.array(["a", "b"])}, "field 'rewards' cannot be read"),
        ({**D4RL, "rewards": np.array(1.0)}, "one value for each transition"),
        ({**D4RL, "rewards": np.zeros(0)}, "field"),
        ({name: array[:0] for name, array in D4RL.items()}, "at least one"),
        ({**{name: array[:1] for name, array in D4RL.items()}, "terminals": np.array([False])}, "longer episodes"),
        ({"about": np.array("{")}, "field 'about' cannot be read"),
        ({"about": np.array("[]")}, "a JSON object"),
        ({"obs": np.array(["a"])}, "field 'obs' cannot be read"),
        ({}, "field 'obs' cannot be used"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused_by_name(arrays, said, tmp_path) -> None:
    np.savez(tmp_path / "made.npz", **arrays)
    with pytest.raises(DataError, match=said):
        FileConfig(path=str(tmp_path / "made.npz")).build()


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 torn"])
def test_a_file_that_only_looks_like_one_of_ours_is_refused(content, tmp_path) -> None:
    (tmp_path / "made.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        FileConfig(path=str(tmp_path / "made.npz")).build()


@pytest.mark.parametrize(
    ("env", "dataset_id", "said"),
    [
        ("Nowhere-v0", "freerun/two-v0", "cannot be made"),
        (COUNT_DISCRETE, "freerun/two-v0", "of another environment"),
        (COUNT, "two", "under this id"),
        (COUNT, "freerun/there-v0", "not there yet"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_anything_is_written(env, dataset_id, said, tmp_path) -> None:
    (tmp_path / "freerun" / "there-v0").mkdir(parents=True)
    with pytest.raises(FreerunError, match=said):
        write(tmp_path, dataset_id, episodes(), env=env)
    assert not (tmp_path / "freerun" / "two-v0").exists()


def test_a_place_where_no_folder_can_be_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FreerunError, match="cannot be written there"):
        write(tmp_path / "file" / "below", "freerun/two-v0", episodes(), env=COUNT)


@pytest.mark.parametrize(
    ("source", "said"), [("gone.npz", "not found"), ("pendulum/good", "medium-replay"), ("gone", "not here")]
)
def test_a_data_set_that_is_not_there_is_named_for_what_it_was_taken_for(source, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "show", source])
    assert ended.value.code == 1
    assert said in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_fetched_only_where_that_is_allowed(tmp_path, monkeypatch) -> None:
    """The hub itself is stood in for by what Minari writes: what is ours is who is asked, and whether."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    asked = []

    def download_dataset(name):
        asked.append(name)
        write(tmp_path, name, episodes(), env=COUNT)

    monkeypatch.setattr(minari, "download_dataset", download_dataset)
    with pytest.raises(DataError, match="allow the download"):
        MinariConfig(source="freerun/two-v0").build()
    assert same(MinariConfig(source="freerun/two-v0", download=True).build(), episodes())
    assert same(MinariConfig(source="freerun/two-v0").build(), episodes())
    assert asked == ["freerun/two-v0"]
