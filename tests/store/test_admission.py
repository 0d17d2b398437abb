"""Transitions one at a time: what is allowed, what is refused, and that a refusal changes nothing."""

import doctest
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.errors import ConfigError, IllegalTransition
from freerun.store import admission as module
from freerun.store.admission import Admission, State
from freerun.types import Failure, FailureKind

TIMEOUT = Failure(FailureKind.TIMEOUT, "rewarder.score", "no answer in 5 s")


def started(num: int, *, batch: int = 2, max_lag: int = 1, window: int = 1, retries: int = 2) -> Admission:
    """An admission whose first `num` items are in flight at version 0."""
    admission = Admission(batch=batch, max_lag=max_lag, window=window, retries=retries)
    for item in range(num):
        assert admission.admit(f"prompt {item}") == item
        admission.begin(item, 0)
    return admission


def test_the_trace_in_the_documentation_is_what_happens() -> None:
    assert doctest.testmod(module) == (0, doctest.testmod(module).attempted)
    assert doctest.testmod(module).attempted > 10


def test_the_store_needs_no_torch() -> None:
    code = (
        "import sys, freerun.store.mix, freerun.store.recovery; "
        "print([m for m in ('torch', 'numpy', 'asyncio', 'socket', 'multiprocessing') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_slots_are_free_only_when_the_trained_version_is_published() -> None:
    admission = started(4)
    assert admission.admit("late") is None
    for item in (0, 1):
        admission.finish(item, 0)
    assert admission.take(2, 0) == [0, 1]
    admission.trained([0, 1], 1)
    assert admission.free_slots == 0
    admission.published(1)
    assert admission.free_slots == 2


def test_a_window_lets_a_finished_item_overtake_and_no_further() -> None:
    admission = started(6, batch=3, window=3)
    for item in (1, 2, 3):
        admission.finish(item, 0)
    assert admission.take(3, 0) == [1, 2]  # 3 is outside: places 0, 1 and 2 belong to the straggler and those that passed it
    admission.finish(0, 0)
    assert admission.ready() == 1  # the step has room for one, although 3 is inside now
    assert admission.take(3, 0) == [0]
    admission.trained([0, 1, 2], 1)
    assert admission.take(3, 1) == [3]


def test_a_dropped_item_gives_its_slot_and_its_place_to_another() -> None:
    admission = started(4, window=2)
    admission.finish(0, 0)
    admission.drop(0, "uniform rewards")
    admission.drop(1, "too long")
    assert admission.free_slots == 2 and admission.admit("new") == 4
    admission.finish(3, 0)
    assert admission.take(2, 0) == [3]
    assert {k: v for k, v in admission.counts().items() if k.startswith("dropped")} == {
        "dropped": 2,
        "dropped/uniform rewards": 1,
        "dropped/too long": 1,
    }


def test_a_failure_is_counted_and_retried_at_its_place_then_dropped_for_its_kind() -> None:
    admission = started(2, retries=1)
    admission.finish(1, 0)
    assert admission.fail(0, TIMEOUT) is True
    assert admission.take(2, 0) == []  # 0 is still first
    admission.begin(0, 0)
    assert admission.fail(0, TIMEOUT) is False
    assert admission.failures == {"timeout": 2}
    assert admission.counts()["dropped/timeout"] == 1
    assert admission.take(2, 0) == [1]


def test_an_item_whose_actor_died_waits_again_and_is_not_blamed() -> None:
    admission = started(1, retries=0)
    admission.requeue(0)
    assert admission.items[0].state == State.WAITING and admission.failures == {}
    admission.begin(0, 0)
    admission.finish(0, 0)
    admission.requeue(0)  # what it had stored is lost
    assert admission.ready() == 0


def test_actors_must_hold_weights_at_least_as_new_as_the_item_and_no_newer_than_published() -> None:
    admission = started(2, batch=1)
    admission.finish(0, 0)
    admission.trained(admission.take(1, 0), 1)
    admission.published(1)
    new = admission.admit("new")
    with pytest.raises(IllegalTransition, match="version 0"):
        admission.begin(new, 0)
    with pytest.raises(IllegalTransition, match="version 2"):
        admission.begin(new, 2)
    admission.begin(new, 1)
    with pytest.raises(IllegalTransition, match="from 1 to 1"):
        admission.finish(new, 0)


def test_a_step_is_taken_in_pieces_and_closed_by_exactly_its_items() -> None:
    admission = started(4)
    for item in range(4):
        admission.finish(item, 0)
    assert admission.take(1, 0) == [0]
    assert admission.take(9, 0) == [1]
    assert admission.take(9, 0) == [] and admission.ready() == 0
    for items, version in (([0], 1), ([0, 1, 2], 1), ([0, 2], 1), ([0, 1], 2)):
        with pytest.raises(IllegalTransition, match="closed"):
            admission.trained(items, version)
    admission.trained([1, 0], 1)
    with pytest.raises(IllegalTransition, match="not the trainer's"):
        admission.take(1, 0)
    with pytest.raises(IllegalTransition, match="out of turn"):
        admission.published(2)


def test_an_item_that_was_taken_cannot_be_dropped_or_trained_twice() -> None:
    admission = started(4)
    for item in range(4):
        admission.finish(item, 0)
    admission.take(2, 0)
    with pytest.raises(IllegalTransition, match="training"):
        admission.drop(0, "too late")
    admission.trained([0, 1], 1)
    admission.published(1)
    with pytest.raises(IllegalTransition, match="it is: 1"):  # the version that trained on it
        admission.drop(0, "too late")
    with pytest.raises(IllegalTransition, match="never admitted"):
        admission.begin(77, 0)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"max_lag": -1}, {"window": 0}, {"retries": -1}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Admission(**{"batch": 1, "max_lag": 1, **wrong})


def test_the_state_is_a_snapshot_and_survives_json() -> None:
    admission = started(4, window=2)
    admission.finish(0, 0)
    admission.finish(1, 0)
    admission.drop(2, "uniform rewards")
    text = json.dumps(admission.state())
    snapshot = admission.state()
    admission.trained(admission.take(2, 0), 1)
    admission.drop(3, "uniform rewards")
    assert json.dumps(snapshot) == text
    again = Admission.from_state(json.loads(text))
    assert [entry.state for entry in again.items.values()] == ["stored", "stored", "waiting"]
    assert json.dumps(Admission.from_state(again.state()).state()) == json.dumps(again.state())
    again.audit()


TRANSITIONS = ("admit", "begin", "finish", "fail", "requeue", "recall", "drop", "take", "trained", "published")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_sequence_of_calls_keeps_the_books_and_a_refused_call_changes_nothing(data: st.DataObject) -> None:
    admission = Admission(batch=data.draw(st.integers(1, 2)), max_lag=data.draw(st.integers(0, 1)), window=2, retries=1)
    for name in data.draw(st.lists(st.sampled_from(TRANSITIONS), max_size=40)):
        item, version = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 3))
        before = json.dumps(admission.state())
        calls = {
            "admit": lambda: admission.admit("prompt"),
            "begin": lambda i=item, v=version: admission.begin(i, v),
            "finish": lambda i=item, v=version: admission.finish(i, v),
            "fail": lambda i=item: admission.fail(i, TIMEOUT),
            "requeue": lambda i=item: admission.requeue(i),
            "recall": lambda i=item, v=version: admission.recall(i, v),
            "drop": lambda i=item: admission.drop(i, "a reason"),
            "take": lambda i=item, v=version: admission.take(i, v),
            "trained": lambda v=version: admission.trained(list(admission._training), v),
            "published": lambda v=version: admission.published(v),
        }
        try:
            calls[name]()
        except IllegalTransition:
            assert json.dumps(admission.state()) == before
        admission.audit()
