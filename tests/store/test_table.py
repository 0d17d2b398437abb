"""Tables: columns and consumers, limits, removal, restoring; and that no table hangs which is not refused."""

import doctest
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from freerun.errors import ConfigError, IllegalTransition
from freerun.store import table as module
from freerun.store.limits import Limiter, MinSize, SamplesPerInsert, Slots
from freerun.store.mix import Mix, Share
from freerun.store.selectors import Fifo, Prioritised, Recency, Uniform
from freerun.store.table import Consumer, Table, TableConfig


def queue(slots: int = 4, **options: Any) -> Table:
    consumer = Consumer(needs=("x",), limiter=Slots(slots=slots), **options)
    return Table(TableConfig(name="queue", capacity=100, consumers={"trainer": consumer}))


def replay(limiter: Limiter, *, uses: int = 0, selector: Any = None, capacity: int = 100, max_age: int | None = None) -> Table:
    trainer = Consumer(needs=(), selector=selector or Uniform(), uses=uses, limiter=limiter)
    return Table(TableConfig(name="replay", capacity=capacity, remover=Fifo(), max_age=max_age, consumers={"trainer": trainer}))


def put(table: Table, *keys: int, version: int = 0, **columns: Any) -> None:
    for key in keys:
        table.insert(key, version=version, columns=columns)


def keys(table: Table, n: int, consumer: str = "trainer", version: int = 0) -> list[int]:
    return [draw.key for draw in table.draw(consumer, n, version)]


def test_the_examples_in_the_documentation_are_what_happens() -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 6


def test_a_queue_gives_each_item_once_in_order_and_holds_producers_back() -> None:
    table = queue(slots=2)
    put(table, 0, 1, x="data")
    assert not table.may_insert()
    with pytest.raises(IllegalTransition, match="now"):
        put(table, 2, x="data")
    assert keys(table, 5) == [0, 1] and len(table) == 0
    put(table, 2, x="data")
    assert keys(table, 5) == [2]


def test_payloads_are_handed_on_unopened() -> None:
    payload = object()
    table = queue()
    put(table, 0, x=payload)
    assert table.draw("trainer", 1, 0)[0].columns["x"] is payload


def test_columns_become_ready_one_by_one_and_each_consumer_has_a_cursor_of_its_own() -> None:
    table = Table(
        TableConfig(
            name="stages",
            capacity=10,
            consumers={
                "scorer": Consumer(needs=("tokens",)),
                "reference": Consumer(needs=("tokens",)),
                "trainer": Consumer(needs=("tokens", "reward", "logp_reference"), selector=Fifo(window=2)),
            },
        )
    )
    put(table, 0, 1, 2, tokens="t")
    assert keys(table, 2, "scorer") == [0, 1] and keys(table, 9, "reference") == [0, 1, 2]
    table.fill(1, {"reward": 1.0})
    assert keys(table, 9) == []
    table.fill(1, {"logp_reference": "l"})
    assert keys(table, 9) == [1]  # passes 0, which is not ready; micro-batches start before the batch is whole
    assert 1 not in table and 0 in table  # all three have used it up
    table.fill(2, {"reward": 1.0, "logp_reference": "l"})
    assert keys(table, 9) == []  # a second one would leave the window
    table.fill(0, {"reward": 0.0, "logp_reference": "l"})
    assert keys(table, 9) == [0, 2]
    assert keys(table, 9, "scorer") == [2] and len(table) == 0


def test_a_column_is_written_once_and_only_while_the_item_is_there() -> None:
    table = queue()
    put(table, 0, x=1)
    with pytest.raises(IllegalTransition, match="already"):
        table.fill(0, {"x": 2})
    with pytest.raises(IllegalTransition, match="no item 5"):
        table.fill(5, {"x": 2})
    table.delete(0)
    assert table.counts == {"inserted": 1, "deleted": 1}


def test_a_full_replay_table_removes_by_its_remover() -> None:
    table = replay(MinSize(), capacity=3)
    put(table, 0, 1, 2)
    assert table.insert(3, version=0, columns={}) == [0]
    assert set(keys(table, 60)) == {1, 2, 3}
    assert table.counts["evicted"] == 1


def test_an_item_that_is_too_old_at_a_draw_is_removed_instead() -> None:
    table = replay(MinSize(), max_age=2)
    put(table, 0, version=5)
    put(table, 1, version=3)
    put(table, 2, version=4)
    assert set(keys(table, 40, version=5)) == {0, 1, 2}
    assert set(keys(table, 40, version=6)) == {0, 2}
    assert table.drawable("trainer", 1, 8) == 0 and table.counts["expired"] == 3 and len(table) == 0


@given(
    st.integers(1, 4),
    st.lists(st.integers(0, 5), max_size=40),
    st.sampled_from([Uniform(), Recency(3), Prioritised(), Fifo(2)]),
)
def test_invariant_4_replay_items_are_drawn_at_most_uses_times(uses: int, batches: list[int], selector: Any) -> None:
    table, seen = replay(MinSize(), uses=uses, capacity=7, selector=selector), []
    for key, n in enumerate(batches):
        put(table, key)
        seen += keys(table, n)
    assert all(seen.count(key) <= uses for key in set(seen))
    counts = table.counts
    assert counts["inserted"] == len(batches) == len(table) + counts["used"] + counts["evicted"]
    assert counts["drawn/trainer"] == len(seen)


def test_samples_per_insert_holds_both_sides_to_the_ratio() -> None:
    table = replay(SamplesPerInsert(ratio=4.0, min_size=5, error_buffer=8.0, batch=8))
    put(table, 0, 1, 2, 3)
    assert table.drawable("trainer", 8, 0) == 0  # fewer than min_size
    put(table, 4)
    assert len(keys(table, 99)) == 8  # the buffer
    assert keys(table, 99) == []
    put(table, 5)
    assert len(keys(table, 99)) == 4
    put(table, 6, 7, 8, 9)
    assert not table.may_insert()  # 16 draws are due beyond the 4 * 1 already made: another insert would be more than 8 ahead


REFUSED = {
    "never fit": (MinSize(size=101), 0, "waits for 101 items, and 100 fit"),
    "no room for a batch": (Slots(slots=4, batch=5), 1, "4 slots"),
    "slots that are never freed": (Slots(slots=4), 0, "unlimited uses never are"),
    "buffer below one insert and one draw": (SamplesPerInsert(ratio=4.0, min_size=1, error_buffer=2.0), 0, "/ 2 = 2.5"),
    "buffer below one insert and a batch": (SamplesPerInsert(ratio=1.0, min_size=1, error_buffer=8.0, batch=32), 0, "= 16.5"),
    "more draws than uses": (SamplesPerInsert(ratio=4.0, min_size=1, error_buffer=8.0), 2, "may be drawn 2 times"),
    "batch of used items": (SamplesPerInsert(ratio=1.0, min_size=4, error_buffer=8.0, batch=8), 1, "hold inserts back"),
    "no ratio": (SamplesPerInsert(ratio=0.0, min_size=1, error_buffer=8.0), 0, "must be positive"),
    "empty table holds back": (SamplesPerInsert(ratio=4.0, min_size=0, error_buffer=2.5), 0, "must be positive"),
    "negative uses": (MinSize(), -1, "uses of 0"),
}


@pytest.mark.parametrize(("limiter", "uses", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_limits_that_could_wait_for_ever_are_refused_and_say_why(limiter: Limiter, uses: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refusal:
        replay(limiter, uses=uses)
    assert "replay" in refusal.value.what


def test_tables_whose_consumers_could_starve_one_another_are_refused() -> None:
    def table(capacity: int, remover: Any = None, **consumers: Consumer) -> TableConfig:
        return TableConfig(name="t", capacity=capacity, remover=remover, consumers=consumers)

    once, always = Consumer(needs=()), Consumer(needs=(), selector=Uniform(), uses=0)
    with pytest.raises(ConfigError, match="fills up"):
        table(10, a=once, b=always)
    with pytest.raises(ConfigError, match="first item for ever"):
        table(10, a=Consumer(needs=(), uses=0))
    with pytest.raises(ConfigError, match="needs a remover"):
        table(10, a=Consumer(needs=(), limiter=SamplesPerInsert(ratio=1.0, min_size=1, error_buffer=2.0)))
    in_threes = Consumer(needs=(), limiter=Slots(slots=4, batch=3))
    with pytest.raises(ConfigError, match="spread over"):
        table(4, a=in_threes, b=in_threes)
    with pytest.raises(ConfigError, match="a consumer"):
        table(4)
    assert table(5, a=in_threes, b=in_threes) and table(10, a=always) and table(10, Fifo(), a=once, b=always)


def paced(ratio: float, min_size: int, batch: int, spare: float) -> SamplesPerInsert:
    """Limits at, or a little above, the smallest error buffer that is accepted."""
    return SamplesPerInsert(ratio=ratio, min_size=min_size, error_buffer=(ratio + batch) / 2 + spare, batch=batch)


sizes = st.integers(1, 5)
ratios = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
limiters = st.one_of(
    st.builds(MinSize, size=sizes, batch=sizes),
    st.builds(lambda batch, spare: Slots(slots=batch + spare, batch=batch), sizes, st.integers(0, 2)),
    st.builds(paced, ratios, sizes, sizes, st.sampled_from([0.0, 0.5, 2.0])),
)
selectors = st.sampled_from([Fifo(), Fifo(window=3), Uniform(), Recency(2), Prioritised()])
consumers = st.builds(Consumer, needs=st.just(()), uses=st.integers(0, 3), limiter=limiters, selector=selectors)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(
    st.lists(consumers, min_size=1, max_size=3), st.integers(1, 12), st.booleans(), st.integers(0, 60), st.integers(0, 10**6)
)
def test_no_accepted_table_starves_anybody(
    readers: list[Consumer], capacity: int, removes: bool, unfair: int, seed: int
) -> None:
    """Consumers wait for their whole batch. However unfairly the sides were served before, once each gets its turn all go on;
    but a table that keeps everything for ever and is full takes no more: it is a dataset."""
    named = {f"reader {i}": reader for i, reader in enumerate(readers)}
    try:
        table = Table(TableConfig(name="t", capacity=capacity, remover=Fifo() if removes else None, seed=seed, consumers=named))
    except ConfigError:
        assume(False)

    def turn(who: str) -> bool:
        if who == "producer":
            if goes := table.may_insert():
                table.insert(table.counts["inserted"], version=0, columns={})
            return goes
        batch = named[who].limiter.batch
        if goes := table.drawable(who, batch, 0) == batch:
            assert len(table.draw(who, batch, 0)) == batch
        return goes

    rng = random.Random(seed)
    everybody = ["producer", *named]
    weights = [rng.random() ** 3 for _ in everybody]
    for who in rng.choices(everybody, weights, k=unfair):
        turn(who)
    rounds = 40 + 8 * capacity
    goers = [{who for who in everybody if turn(who)} for _ in range(2 * rounds)]
    waiting = set(everybody).difference(*goers[rounds:])
    if not removes and not any(reader.uses for reader in readers):
        waiting.discard("producer")
    assert not waiting, f"{table.counts} {table._left}"


@pytest.mark.parametrize("selector", [Uniform(), Recency(4), Prioritised(), Fifo(window=3)], ids=repr)
def test_a_restored_table_goes_on_with_the_very_same_draws(selector: Any) -> None:
    trainer = Consumer(needs=("x",), selector=selector, uses=2)
    critic = Consumer(needs=("y",), selector=Uniform(), uses=3)
    config = TableConfig(
        name="t", capacity=20, remover=Uniform(), max_age=30, seed=3, consumers={"trainer": trainer, "critic": critic}
    )
    table, values = Table(config), {}

    def produce(each: Table, key: int) -> None:
        values[key] = f"x of {key}"
        each.insert(key, version=key, columns={"x": values[key]}, priority=1.0 + key % 5)
        if key - 1 in each:
            each.fill(key - 1, {"y": "y"})
            each.reprioritise(key - 1, 9.0)

    for key in range(40):
        produce(table, key)
        table.draw("trainer", 1, key)
        table.draw("critic", 2, key)
    state = json.loads(json.dumps(table.state()))
    other = Table.from_state(config, state, lambda key, column: values[key] if column == "x" else "y")
    assert json.dumps(other.state()) == json.dumps(table.state())
    for key in range(40, 60):
        for each in (table, other):
            produce(each, key)
        assert other.draw("trainer", 3, key) == table.draw("trainer", 3, key)
        assert other.draw("critic", 2, key) == table.draw("critic", 2, key)
    assert other.counts == table.counts


def test_a_mix_keeps_its_shares_over_time_and_follows_its_schedule() -> None:
    tables = {"online": replay(MinSize()), "demos": replay(MinSize())}
    for table in tables.values():
        put(table, *range(9))
    mix = Mix(tables, {"online": Share(1.0), "demos": Share(0.5)}, consumer="trainer", n=4)
    totals = {"online": 0, "demos": 0}
    for step in range(30):
        for name, draws in mix.draw(step=step, version=0).items():
            totals[name] += len(draws)
    assert totals == {"online": 80, "demos": 40}
    moving = Mix(tables, {"online": Share(0.0, 1.0, 10), "demos": Share(1.0, 0.0, 10)}, consumer="trainer", n=4)
    parts = [{name: len(draws) for name, draws in moving.draw(step=step, version=0).items()} for step in range(12)]
    assert parts[0] == {"demos": 4} and parts[-1] == {"online": 4} and parts[5] == {"online": 2, "demos": 2}


def test_a_mix_waits_rather_than_change_its_shares_and_its_debts_survive_a_restart() -> None:
    tables = {"online": queue(), "demos": replay(MinSize())}
    put(tables["demos"], *range(4))
    shares = {"online": Share(1.0), "demos": Share(1.0)}
    mix = Mix(tables, shares, consumer="trainer", n=3)
    assert mix.draw(step=0, version=0) == {}
    put(tables["online"], 0, 1, x="data")
    assert {name: len(draws) for name, draws in mix.draw(step=0, version=0).items()} == {"online": 2, "demos": 1}
    other = Mix(tables, shares, consumer="trainer", n=3)
    other.load(json.loads(json.dumps(mix.state())))
    put(tables["online"], 2, x="data")
    assert {name: len(draws) for name, draws in other.draw(step=1, version=0).items()} == {"online": 1, "demos": 2}


def test_mixes_that_cannot_make_a_batch_are_refused() -> None:
    tables = {"a": replay(MinSize()), "b": queue(slots=4)}
    for shares in ({"a": Share(1.0)}, {"a": Share(-1.0), "b": Share(2.0)}, {"a": Share(1.0, 0.0), "b": Share(0.0)}):
        with pytest.raises(ConfigError, match="shares"):
            Mix(tables, shares, consumer="trainer", n=4)
    with pytest.raises(ConfigError, match="4 slots"):
        Mix(tables, {"a": Share(1.0), "b": Share(1.0)}, consumer="trainer", n=32)
