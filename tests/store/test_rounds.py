"""Rounds of federated training: by hand, under random schedules, and their limits against closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freerun.errors import ConfigError, IllegalTransition
from freerun.store import rounds
from freerun.store.rounds import Arrivals, Interval, Rounds, Synchronous, Work, played

FAST_AND_SLOW = [1.0, 3.0]


def ended(scheme, until=6.0, seconds=FAST_AND_SLOW):
    """(time, clients, versions that they were sent) of each round."""
    return [(r.time, [w.client for w in r.works], [w.version for w in r.works]) for r in played(scheme, seconds, until)]


def test_fedavg_waits_for_the_slowest():
    assert ended(Synchronous()) == [(3.0, [0, 1], [0, 0]), (6.0, [0, 1], [1, 1])]


def test_asynchronous_fedavg_ends_a_round_with_each_arrival():
    assert ended(Arrivals(1), 3.0) == [(1.0, [0], [0]), (2.0, [0], [1]), (3.0, [0], [2]), (3.0, [1], [0])]


def test_fedbuff_counts_arrivals_whoever_they_come_from():
    assert ended(Arrivals(3), 6.0) == [(3.0, [0, 0, 0], [0, 0, 0]), (5.0, [1, 0, 0], [0, 1, 1])]


def test_fedfix_ends_a_round_after_a_fixed_time_and_who_is_in_waits_for_it():
    assert ended(Interval(2.0), 6.0) == [(2.0, [0], [0]), (4.0, [0, 1], [1, 0]), (6.0, [0], [2])]


def test_what_arrives_at_the_very_end_of_an_interval_belongs_to_it():
    """Three times 0.2 is a little more than 0.6 in floating point."""
    assert [clients for _, clients, _ in ended(Interval(0.6), 1.81, [0.2 * 3])] == [[0], [0], [0]]
    assert Interval(0.6).rates([0.2 * 3]) == [1.0]


def test_an_interval_into_which_nothing_came_goes_on_for_as_long_again():
    assert [time for time, _, _ in ended(Interval(2.0), 13.0, [5.0])] == [6.0, 12.0]


def test_an_interval_that_ended_while_nobody_looked_ended_then():
    machine = Rounds(Interval(1.0), 2)
    machine.begin(0, 0)
    machine.arrive(0, 0.5)
    assert not machine.ready(0.9)
    assert machine.ready(2.7)
    machine.take(2.7)
    assert machine.since == 1.0


@pytest.mark.parametrize(
    ("scheme", "rates"),
    [
        (Synchronous(), [1.0, 1.0]),
        (Arrivals(1), [0.75, 0.25]),
        (Arrivals(4), [3.0, 1.0]),
        (Interval(2.0), [1.0, 0.5]),
        (Interval(0.4), [1 / 3, 1 / 8]),
    ],
)
def test_rates_of_taking_part_by_hand_and_as_they_come_out(scheme, rates):
    assert scheme.rates(FAST_AND_SLOW) == pytest.approx(rates)
    found, num = [0, 0], 0
    for one in played(scheme, FAST_AND_SLOW, 3000.0):
        num += 1
        for work in one.works:
            found[work.client] += 1
    # An interval in which nobody arrives is no round: what the table counts is intervals.
    num = round(3000.0 / scheme.seconds) if isinstance(scheme, Interval) else num
    assert [count / num for count in found] == pytest.approx(rates, rel=0.01)


@pytest.mark.parametrize("scheme", [Synchronous(), Arrivals(1), Arrivals(3), Interval(0.7)])
def test_the_weights_undo_how_often_clients_take_part(scheme):
    wanted, seconds = [0.5, 0.2, 0.3], [0.3, 1.0, 2.5]
    weights = rounds.weights(scheme, wanted, seconds)
    assert rounds.surrogate(scheme, weights, seconds) == pytest.approx(wanted)
    assert sum(d * rate for d, rate in zip(weights, scheme.rates(seconds), strict=True)) == pytest.approx(1.0)


def test_with_equal_weights_the_fast_count_more():
    seconds = [1.0, 4.0]
    assert rounds.surrogate(Synchronous(), [1, 1], seconds) == pytest.approx([0.5, 0.5])
    assert rounds.surrogate(Arrivals(1), [1, 1], seconds) == pytest.approx([0.8, 0.2])
    assert rounds.surrogate(Interval(2.0), [1, 1], seconds) == pytest.approx([2 / 3, 1 / 3])


schemes = st.one_of(st.just(Synchronous()), st.builds(Arrivals, st.integers(1, 6)), st.builds(Interval, st.floats(0.1, 3.0)))


@given(scheme=schemes, clients=st.integers(1, 5), moves=st.lists(st.tuples(st.integers(0, 4), st.floats(0.0, 1.0))))
def test_every_piece_of_work_is_taken_once_and_somebody_can_always_go_on(scheme, clients, moves):
    machine, now, begun, taken, version = Rounds(scheme, clients), 0.0, set(), [], 0
    for client, wait in moves:
        now += wait
        client %= clients
        if machine.may_begin(client):
            begun.add(machine.begin(client, version))
        elif client in machine._working:
            machine.arrive(client, now)
        if machine.ready(now):
            works = machine.take(now)
            taken += [work.item for work in works]
            assert all(work.version <= version for work in works)
            assert not any(machine.may_begin(work.client) for work in works)
            machine.published()
            version += 1
        if not machine._working and not any(machine.may_begin(other) for other in range(clients)):
            assert math.isfinite(machine.closing) or machine.scheme.full(len(machine._arrived), clients)
        counts = machine.counts()
        assert counts["admitted"] == len(begun) == counts["in_flight"] + counts["stored"] + len(taken)
    assert len(set(taken)) == len(taken) and set(taken) <= begun


def test_a_saved_machine_goes_on_and_work_under_way_is_begun_again():
    machine = Rounds(Interval(1.0), 3)
    for client in range(3):
        machine.begin(client, 0)
    machine.arrive(1, 0.25)
    again = Rounds(Interval(1.0), 3)
    again.load(machine.state())
    assert [again.may_begin(client) for client in range(3)] == [True, False, True]
    assert again.closing == 1.0
    assert again.take(1.0) == [Work(1, 1, 0)]


def test_what_the_rules_forbid_is_refused():
    machine = Rounds(Synchronous(), 2)
    machine.begin(0, 0)
    with pytest.raises(IllegalTransition, match="cannot begin"):
        machine.begin(0, 0)
    with pytest.raises(IllegalTransition, match="cannot arrive"):
        machine.arrive(1, 0.0)
    machine.arrive(0, 0.0)
    with pytest.raises(IllegalTransition, match="cannot end"):
        machine.take(9.0)
    assert not machine.may_begin(0), "it waits for the other one"
    for broken in (lambda: Arrivals(0), lambda: Interval(0.0)):
        with pytest.raises(ConfigError):
            broken()
