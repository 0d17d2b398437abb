"""Transitions beside the trainer: rows keep who follows them, n steps stop where an episode does, and old rows are given up."""

import pytest
import torch
from control.rows import GAMMA, chunk, column
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.errors import ConfigError, MissingColumn
from freerun.trainer.storage import Storage


def one_stream(ends: str = "terminated", capacity: int = 100) -> Storage:
    """Rewards 1, 2, 3 of an episode and 4, 5 of the next, in two chunks of which the first ends within the second episode."""
    storage = Storage(capacity)
    storage.insert_chunk(0, 0, chunk(column(1, 2, 3, 4), episodes=column(0, 0, 0, 1), steps=column(0, 1, 2, 0), ends=ends))
    storage.insert_chunk(1, 0, chunk(column(5, 6), episodes=column(1, 1), steps=column(1, 2), ends=ends))
    return storage


def read(storage: Storage, *places: int, steps: int = 1, names: tuple[str, ...] = ("reward", "discount")) -> dict[str, list]:
    return {k: v.tolist() for k, v in storage.read(torch.tensor(places), names, gamma=GAMMA, steps=steps).items()}


def test_one_step_is_what_was_stored() -> None:
    storage = one_stream()
    assert read(storage, 0, 2, names=("reward", "discount", "terminated")) == {
        "reward": [1.0, 3.0],
        "discount": [0.5, 0.0],
        "terminated": [False, True],
    }


def test_three_steps_add_up_what_follows_and_look_on_from_the_last() -> None:
    got = one_stream().read(torch.tensor([0]), ("reward", "discount", "next_obs", "terminated"), gamma=GAMMA, steps=3)
    # 1 + 2 / 2 + 3 / 4; the third step terminates.
    assert (got["reward"].item(), got["discount"].item(), got["next_obs"].item(), got["terminated"].item()) == (
        2.75,
        0.0,
        3.5,
        True,
    )


@pytest.mark.parametrize(("ends", "beyond"), [("terminated", 0.0), ("truncated", 0.25)])
def test_n_steps_stop_at_the_end_of_an_episode_and_take_a_value_only_beyond_a_cut(ends, beyond) -> None:
    # From reward 2 there are two steps: 2 + 3 / 2.
    assert read(one_stream(ends), 1, steps=3) == {"reward": [3.5], "discount": [beyond]}


def test_n_steps_go_on_across_chunks_and_stop_where_nothing_is_stored_yet() -> None:
    storage = one_stream()
    assert read(storage, 3, steps=3) == {"reward": [4 + 5 / 2 + 6 / 4], "discount": [0.125]}
    assert read(storage, 4, steps=3) == {"reward": [5 + 6 / 2], "discount": [0.25]}
    assert read(storage, 5, steps=3) == {"reward": [6.0], "discount": [0.5]}


def test_chunks_of_several_actors_are_interleaved_and_their_streams_are_not() -> None:
    storage = Storage(100)
    for item, (actor, first) in enumerate([(0, 1.0), (1, 10.0), (0, 3.0), (1, 30.0)]):
        later = 2 * (item // 2)
        storage.insert_chunk(
            item,
            actor,
            chunk(column(first, first + 1), episodes=column(actor, actor), steps=column(later, later + 1)),
        )
    assert read(storage, 1, steps=2)["reward"] == [2.0 + 3.0 / 2]
    assert read(storage, 3, steps=2)["reward"] == [11.0 + 30.0 / 2]


def test_a_chunk_that_does_not_follow_the_actors_last_is_not_joined_to_it() -> None:
    storage = Storage(100)
    storage.insert_chunk(0, 0, chunk(column(1, 2), episodes=column(7, 7), steps=column(0, 1)))
    storage.insert_chunk(1, 0, chunk(column(8), episodes=column(9), steps=column(0)))
    assert read(storage, 1, steps=2)["reward"] == [2.0]


def test_the_next_action_is_that_of_the_same_episode_or_zero() -> None:
    names = ("next_action",)
    assert read(one_stream(), 0, 1, 2, 3, 4, 5, names=names)["next_action"] == [[2.0], [3.0], [0.0], [5.0], [6.0], [0.0]]


def test_the_oldest_rows_are_overwritten_and_chains_do_not_lead_to_what_took_their_place() -> None:
    storage = one_stream(capacity=6)
    storage.insert_chunk(2, 0, chunk(column(7, 8), episodes=column(1, 1), steps=column(3, 4)))
    assert (len(storage), storage.first, storage.total) == (6, 2, 8)
    # Reward 6 lies at place 5 and is followed by 7 at place 0.
    assert read(storage, 5, steps=3)["reward"] == [6 + 7 / 2 + 8 / 4]
    assert read(storage, 1, steps=3)["reward"] == [8.0]


def test_rows_of_a_chunk_that_goes_over_the_end_lie_where_it_says() -> None:
    storage = one_stream(capacity=7)
    places = storage.insert_chunk(2, 0, chunk(column(7, 8, 9), episodes=column(1, 1, 1), steps=column(3, 4, 5)))
    assert places.tolist() == [6, 0, 1]
    assert read(storage, 6, 0, 1, 2, names=("reward",))["reward"] == [7.0, 8.0, 9.0, 3.0]


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32, torch.float64])
def test_numbers_of_every_kind_come_back_as_they_were(kind) -> None:
    storage, given = Storage(4), torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 0]]]).to(kind)
    columns = chunk([[1, 2], [3, 4]], episodes=[[0, 1], [0, 1]], steps=[[0, 0], [1, 1]])
    places = storage.insert_chunk(0, 0, {**columns, "values": given.transpose(1, 2)})
    found = storage.read(places, ("values",), gamma=GAMMA)["values"]
    assert found.dtype == kind
    assert torch.equal(found, given.transpose(1, 2).flatten(0, 1))


def test_an_actor_that_writes_its_next_chunk_over_the_last_one_changes_nothing_that_is_stored() -> None:
    storage, columns = Storage(10), chunk(column(1, 2), episodes=column(0, 0), steps=column(0, 1))
    storage.insert_chunk(0, 0, columns)
    for name, later in chunk(column(3, 4), episodes=column(0, 0), steps=column(2, 3)).items():
        columns[name].copy_(later)
    storage.insert_chunk(1, 0, columns)
    assert read(storage, 1, steps=3)["reward"] == [2 + 3 / 2 + 4 / 4]


def test_a_chunk_that_is_given_up_takes_what_lies_before_it_along() -> None:
    storage = one_stream()
    storage.keep_from(1)
    assert (storage.first, len(storage)) == (4, 2)
    storage.keep_from(5)
    assert len(storage) == 0


def test_rows_with_other_columns_are_refused_with_their_names() -> None:
    storage = one_stream()
    with pytest.raises(MissingColumn, match="other columns"):
        storage.insert_chunk(2, 0, {**chunk(column(1), episodes=column(3), steps=column(0)), "log_prob": torch.zeros(1, 1)})


def test_a_column_that_nobody_recorded_is_an_error_that_says_what_it_is() -> None:
    with pytest.raises(MissingColumn, match="log-prob"):
        one_stream().read(torch.tensor([0]), ("log_prob",), gamma=GAMMA)


def test_a_chunk_larger_than_the_storage_is_refused() -> None:
    with pytest.raises(ConfigError, match="capacity 3"):
        Storage(3).insert_chunk(0, 0, chunk(column(1, 2, 3, 4), episodes=column(0, 0, 0, 0), steps=column(0, 1, 2, 3)))


def test_columns_in_files_are_those_in_memory_and_are_in_the_files(tmp_path) -> None:
    inside, outside = one_stream(), Storage(100, directory=tmp_path)
    outside.insert_chunk(
        0, 0, chunk(column(1, 2, 3, 4), episodes=column(0, 0, 0, 1), steps=column(0, 1, 2, 0), ends="terminated")
    )
    outside.insert_chunk(1, 0, chunk(column(5, 6), episodes=column(1, 1), steps=column(1, 2)))
    names, places = ("obs", "reward", "discount", "next_obs", "next_action"), torch.arange(6)
    for name, value in inside.read(places, names, gamma=GAMMA, steps=2).items():
        assert torch.equal(value, outside.read(places, names, gamma=GAMMA, steps=2)[name]), name
    kept = torch.from_file(str(tmp_path / "reward"), size=100)
    assert kept[:6].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_restored_storage_goes_on_like_the_saved_one() -> None:
    first, again = one_stream(capacity=6), Storage(6)
    again.load(first.state())
    for storage in (first, again):
        storage.insert_chunk(2, 0, chunk(column(7, 8), episodes=column(1, 1), steps=column(3, 4)))
        storage.keep_from(1)
    assert (first.first, first.total) == (again.first, again.total)
    names, places = ("obs", "reward", "discount", "next_action"), torch.arange(6)
    for name, value in first.read(places, names, gamma=GAMMA, steps=3).items():
        assert torch.equal(value, again.read(places, names, gamma=GAMMA, steps=3)[name]), name


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_n_steps_are_those_that_a_loop_over_episodes_finds(data) -> None:
    """Random episodes of two actors, in chunks of random lengths, against the plain definition."""
    capacity, n = data.draw(st.integers(12, 40)), data.draw(st.integers(1, 5))
    storage, streams, rows = Storage(capacity), {}, []
    for item in range(data.draw(st.integers(1, 12))):
        actor, length = data.draw(st.integers(0, 1)), data.draw(st.integers(1, 6))
        episode, step = streams.get(actor, (actor * 1000, 0))
        episodes, steps, ends = [], [], []
        for _ in range(length):
            ends.append(data.draw(st.sampled_from(["", "", "", "terminated", "truncated"])))
            episodes.append(episode)
            steps.append(step)
            episode, step = (episode + 1, 0) if ends[-1] else (episode, step + 1)
        streams[actor] = episode, step
        rewards = [float(len(rows) + i) for i in range(length)]
        columns = chunk(column(*rewards), episodes=column(*episodes), steps=column(*steps))
        for name in ("terminated", "truncated"):
            columns[name] = torch.tensor([[end == name] for end in ends])
        storage.insert_chunk(item, actor, columns)
        rows += zip(rewards, episodes, ends, strict=True)
    for position in range(storage.first, storage.total):
        same = [i for i in range(position, len(rows)) if rows[i][1] == rows[position][1]][:n]
        got = storage.read(torch.tensor([position % capacity]), ("reward", "discount", "next_obs"), gamma=GAMMA, steps=n)
        assert got["reward"].item() == pytest.approx(sum(GAMMA**k * rows[i][0] for k, i in enumerate(same)))
        assert got["next_obs"].item() == rows[same[-1]][0] + 0.5
        assert got["discount"].item() == (0.0 if rows[same[-1]][2] == "terminated" else GAMMA ** len(same))
