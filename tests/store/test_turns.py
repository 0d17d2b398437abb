"""Limits of replay in control: strict turns, consumers that select for themselves, limits that change between phases. Shares of
batches."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.errors import ConfigError, IllegalTransition
from freerun.store.limits import Level, MinSize, Turns
from freerun.store.mix import Portions, Share, Spells
from freerun.store.selectors import Fifo, Uniform
from freerun.store.table import Consumer, Table, TableConfig


def table(limiter: object = None, *, capacity: int = 100, max_age: int | None = None) -> Table:
    consumer = Consumer(needs=(), selector=Uniform(), uses=0, limiter=limiter or MinSize())
    return Table(TableConfig(name="replay", capacity=capacity, remover=Fifo(), max_age=max_age, consumers={"t": consumer}))


def test_with_strict_turns_each_insert_makes_its_draws_due_and_is_followed_by_them() -> None:
    turns = Turns(ratio=4.0, size=2, batch=4)
    assert [turns.may_insert(Level(n, n, 0)) for n in range(4)] == [True, True, True, False]
    assert [turns.budget(Level(n, n, 0)) for n in range(4)] == [0, 0, 0, 4]
    assert turns.may_insert(Level(3, 3, 4))


def test_ahead_lets_inserts_and_lead_lets_draws_come_before_their_turn() -> None:
    assert [Turns(ratio=4.0, batch=4, ahead=2).may_insert(Level(n, n, 0)) for n in range(5)] == [True, True, True, False, False]
    assert Turns(ratio=4.0, batch=4, lead=8.0).budget(Level(1, 1, 4)) == 8


def test_turns_with_less_than_one_draw_per_insert_wait_for_a_whole_one() -> None:
    turns = Turns(ratio=0.25)
    assert [turns.budget(Level(n, n, 0)) for n in range(6)] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("ratio", "size", "lead", "ahead", "batch"), [(0, 0, 0, 0, 1), (1, -1, 0, 0, 1), (1, 0, 0, 0, 0)])
def test_turns_that_cannot_be_are_refused(ratio, size, lead, ahead, batch) -> None:
    with pytest.raises(ConfigError, match="wait for ever"):
        table(Turns(ratio=ratio, size=size, lead=lead, ahead=ahead, batch=batch))


def test_a_consumer_that_selects_for_itself_gets_all_it_asks_for_or_nothing() -> None:
    replay = table(Turns(ratio=4.0, batch=4))
    assert replay.spend("t", 4, version=0) == 0
    replay.insert(0, version=0, columns={})
    assert replay.spend("t", 5, version=0) == 0
    assert replay.spend("t", 4, version=0) == 4
    assert replay.counts["drawn/t"] == 4
    assert replay.spend("t", 1, version=0) == 0


def test_what_is_too_old_cannot_be_spent_and_is_below_the_first_key() -> None:
    replay = table(max_age=2)
    for key in range(3):
        replay.insert(key, version=key, columns={})
    assert (replay.first_key, replay.spend("t", 1, version=3)) == (0, 1)
    assert replay.first_key == 1
    assert replay.spend("t", 1, version=9) == 0
    assert replay.first_key == 3


def test_items_that_can_be_used_up_cannot_be_selected_by_their_consumer() -> None:
    queue = Table(TableConfig(name="queue", capacity=4, consumers={"t": Consumer(needs=())}))
    queue.insert(0, version=0, columns={})
    with pytest.raises(IllegalTransition, match="select for itself"):
        queue.spend("t", 1, version=0)


def test_a_new_limit_counts_from_when_it_is_given() -> None:
    replay = table()
    for key in range(5):
        replay.insert(key, version=0, columns={})
    replay.spend("t", 7, version=0)
    replay.limit("t", Turns(ratio=2.0, batch=2))
    assert replay.drawable("t", 2, 0) == 0
    replay.insert(5, version=0, columns={})
    assert replay.spend("t", 2, version=0) == 2
    assert replay.spend("t", 2, version=0) == 0


def test_a_limit_is_refused_as_it_would_be_in_a_new_table() -> None:
    with pytest.raises(ConfigError, match="wait for ever"):
        table().limit("t", Turns(ratio=0.0))


def test_a_restored_table_counts_from_the_same_moment() -> None:
    replay, turns = table(), Turns(ratio=2.0, batch=2)
    for key in range(5):
        replay.insert(key, version=0, columns={})
    replay.limit("t", turns)
    replay.insert(5, version=0, columns={})
    state = json.loads(json.dumps(replay.state()))
    again = Table.from_state(replay.config, state, lambda key, column: None)
    again.limit("t", turns, since=state["since"]["t"])
    assert [again.spend("t", 2, 0), again.spend("t", 2, 0)] == [2, 0]


def test_an_item_that_was_promised_is_taken_even_if_none_may_be_begun() -> None:
    replay = table(Turns(ratio=1.0), capacity=3)
    assert (replay.may_insert(), replay.may_insert(coming=1)) == (True, False)
    replay.insert(0, version=0, columns={})
    with pytest.raises(IllegalTransition, match="cannot take item 1"):
        replay.insert(1, version=0, columns={})
    replay.insert(1, version=0, columns={}, promised=True)


# --- shares ------------------------------------------------------------------------------------------------------------------


def test_shares_that_divide_a_batch_are_exact_in_every_batch() -> None:
    portions = Portions({"new": Share(3.0), "old": Share(1.0)}, 8)
    assert [portions.take(step) for step in range(3)] == [{"new": 6, "old": 2}] * 3


def test_what_rounding_takes_is_given_back_in_a_later_batch() -> None:
    portions = Portions({"new": Share(1.0), "old": Share(2.0)}, 1)
    assert [portions.take(step)["new"] for step in range(6)] == [0, 1, 0, 0, 1, 0]


def test_a_share_that_moves_goes_along_a_straight_line() -> None:
    portions = Portions({"old": Share(1.0, 0.0, 4), "new": Share(0.0, 1.0, 4)}, 8)
    assert [portions.take(step)["old"] for step in range(6)] == [8, 6, 4, 2, 0, 0]


@pytest.mark.parametrize("shares", [{}, {"a": Share(0.0)}, {"a": Share(-1.0), "b": Share(2.0)}, {"a": Share(1.0, 0.0, 5)}])
def test_shares_that_cannot_make_a_batch_are_refused(shares) -> None:
    with pytest.raises(ConfigError, match="shares of a mix"):
        Portions(shares, 4)


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=4), n=st.integers(1, 64), batches=st.integers(1, 40))
def test_every_batch_is_full_and_shares_hold_to_less_than_a_row_per_source(weights, n, batches) -> None:
    portions = Portions({str(i): Share(weight) for i, weight in enumerate(weights)}, n)
    given_so_far = dict.fromkeys(portions.shares, 0)
    for step in range(batches):
        parts = portions.take(step)
        assert sum(parts.values()) == n
        assert min(parts.values()) >= 0
        assert all(parts[name] <= portions.most[name] for name in parts)
        given_so_far = {name: given_so_far[name] + part for name, part in parts.items()}
    for name, weight in zip(portions.shares, weights, strict=True):
        assert abs(given_so_far[name] - batches * n * weight / sum(weights)) < len(weights)


# --- spells ------------------------------------------------------------------------------------------------------------------


def test_in_a_spell_all_batches_come_from_one_source_and_spells_hold_the_shares() -> None:
    spells = Spells({"old": Share(1.0), "new": Share(3.0)}, 8, length=5, seed=0)
    taken = [spells.take(step) for step in range(5_000)]
    assert all(sorted(batch.values()) == [0, 8] for batch in taken)
    assert all(batch == taken[i - i % 5] for i, batch in enumerate(taken))
    assert sum(batch["new"] == 8 for batch in taken) / 5_000 == pytest.approx(0.75, abs=0.05)


def test_saved_spells_go_on_where_they_were() -> None:
    spells, again = (Spells({"old": Share(1.0), "new": Share(1.0)}, 4, length=3, seed=1) for _ in range(2))
    _ = [spells.take(step) for step in range(7)]
    again.load(json.loads(json.dumps(spells.state())))
    assert [spells.take(step) for step in range(40)] == [again.take(step) for step in range(40)]


def test_spells_refuse_shares_as_portions_do() -> None:
    with pytest.raises(ConfigError, match="shares of a mix"):
        Spells({"a": Share(0.0)}, 4, length=3, seed=0)
