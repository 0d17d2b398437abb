"""Turns of collecting and learning, with room between the least and the most that an item is used."""

from hypothesis import given
from hypothesis import strategies as st

from freerun.store.limits import Level, Turns


def test_between_the_least_and_the_most_both_may_go_on():
    turns = Turns(ratio=2.0, most=6.0, size=1, batch=4)
    assert turns.budget(Level(3, 3, 4)) == 8, "12 may be drawn, 4 are"
    assert turns.may_insert(Level(3, 3, 4)), "no more has to be drawn first"
    assert turns.budget(Level(3, 3, 12)) == 0, "everything that may be drawn is"


def test_a_most_below_the_least_changes_nothing():
    strict, odd = Turns(ratio=2.0, batch=4), Turns(ratio=2.0, most=1.0, batch=4)
    for level in (Level(n, n, d) for n in range(6) for d in range(12)):
        assert strict.budget(level) == odd.budget(level)
        assert strict.may_insert(level) == odd.may_insert(level)


@given(
    ratio=st.floats(0.1, 8.0),
    more=st.floats(0.0, 8.0),
    size=st.integers(0, 5),
    batch=st.integers(1, 20),
    lead=st.floats(0.0, 10.0),
    ahead=st.integers(0, 4),
    choices=st.lists(st.booleans(), max_size=80),
)
def test_whoever_is_slow_somebody_can_go_on_and_the_bounds_hold(ratio, more, size, batch, lead, ahead, choices):
    most = ratio + more
    turns = Turns(ratio=ratio, most=most, size=size, batch=batch, lead=lead, ahead=ahead)
    inserted = drawn = 0
    for insert_first in choices:
        level = Level(inserted, inserted, drawn)
        may_insert, may_draw = turns.may_insert(level), turns.budget(level) >= batch
        assert may_insert or may_draw
        if may_insert and (insert_first or not may_draw):
            inserted += 1
        else:
            drawn += batch
        assert drawn <= most * (inserted - size) + lead + 1e-6 or not drawn
        assert ratio * (inserted - size) - drawn < batch + (ahead + 1) * ratio + 1e-6 or inserted <= size + 1
