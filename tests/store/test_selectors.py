"""Selectors against what they are defined to draw, counted over seeded draws, and against plain models."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freerun.errors import ConfigError, DataError
from freerun.store.selectors import Fifo, Prioritised, Recency, SelectorConfig, Uniform, Window

CONFIGS = [Fifo(), Fifo(window=3), Uniform(), Recency(last=3), Prioritised(exponent=1.0)]


def filled(config: SelectorConfig, priorities: dict[int, float]):
    selector = config.build()
    for key, priority in priorities.items():
        selector.add(key)
        selector.ready(key, priority)
    return selector


def frequencies(config: SelectorConfig, priorities: dict[int, float], draws: int = 4000) -> dict[int, float]:
    selector, rng = filled(config, priorities), random.Random(0)
    return {key: n / draws for key, n in Counter(selector.select(rng)[0] for _ in range(draws)).items()}


def test_priorities_set_the_probabilities_and_each_draw_reports_its_own() -> None:
    seen = frequencies(Prioritised(exponent=0.5), {0: 1.0, 1: 4.0, 2: 25.0})
    assert seen == pytest.approx({0: 1 / 8, 1: 2 / 8, 2: 5 / 8}, abs=0.03)
    key, probability = filled(Prioritised(exponent=0.5), {7: 9.0}).select(random.Random(0))
    assert (key, probability) == (7, 1.0)


def test_uniform_draws_are_uniform_and_recency_draws_from_the_newest_only() -> None:
    assert frequencies(Uniform(), dict.fromkeys(range(4), 1.0)) == pytest.approx(dict.fromkeys(range(4), 0.25), abs=0.03)
    assert frequencies(Recency(last=2), dict.fromkeys(range(9), 1.0)) == pytest.approx({7: 0.5, 8: 0.5}, abs=0.03)


def test_a_priority_can_change_and_a_removed_key_is_never_drawn() -> None:
    selector, rng = filled(Prioritised(exponent=1.0), {0: 1.0, 1: 1.0, 2: 1.0}), random.Random(0)
    selector.ready(1, 1e9)
    assert Counter(selector.select(rng)[0] for _ in range(50))[1] == 50
    selector.discard(1)
    selector.discard(1)
    assert {selector.select(rng)[0] for _ in range(50)} == {0, 2}
    assert selector.num_ready(9) == 2


@pytest.mark.parametrize("priority", [0.0, -1.0, float("inf"), float("nan")])
def test_priorities_that_have_no_probability_are_refused(priority: float) -> None:
    with pytest.raises(DataError, match="priority"):
        Prioritised().build().ready(0, priority)


def test_a_width_or_a_range_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="window"):
        Fifo(window=0)
    with pytest.raises(ConfigError, match="last"):
        Recency(last=0)


def test_a_remover_with_a_negative_exponent_prefers_low_priorities() -> None:
    assert frequencies(Prioritised(exponent=-2.0), {0: 1.0, 1: 3.0}) == pytest.approx({0: 0.9, 1: 0.1}, abs=0.02)


@given(st.integers(1, 6), st.lists(st.sampled_from(["add", "ready", "take", "discard"]), max_size=60), st.randoms())
def test_a_window_agrees_with_its_definition(width: int, calls: list[str], rng: random.Random) -> None:
    """The definition, in the form that the proof uses: key k may go iff fewer than `width` keys that are here or passed by lie
    between the oldest key that is here and k."""
    window, marks = Window(width), {}

    def may_go(key: int) -> bool:
        here = [k for k, mark in marks.items() if mark != "taken"]
        return marks[key] == "ready" and sum(here[0] <= k < key for k in marks) < width

    for i, call in enumerate(calls):
        if call == "add":
            window.add(i)
            marks[i] = "pending"
        elif call == "ready" and (pending := [k for k, mark in marks.items() if mark == "pending"]):
            key = rng.choice(pending)
            window.ready(key)
            marks[key] = "ready"
        elif call == "take" and (allowed := [k for k in marks if may_go(k)]):
            assert window.takeable(1) == allowed[:1]
            key = rng.choice(allowed)
            window.take(key)
            marks[key] = "taken"
        elif call == "discard" and (here := [k for k, mark in marks.items() if mark != "taken"]):
            key = rng.choice(here)
            window.discard(key)
            del marks[key]
        assert bool(window.takeable(1)) == any(may_go(k) for k in marks)


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=30), st.integers(0, 12))
def test_taking_one_by_one_gives_what_takeable_promised(width: int, steps: list[tuple[int, bool]], limit: int) -> None:
    window = Window(width)
    for key in range(13):
        window.add(key)
    for key in {key for key, _ in steps}:
        window.ready(key)
    promised, given_out = window.takeable(limit), []
    while len(given_out) < limit and window.num_ready(1):
        given_out.append(window.select(random.Random(0))[0])
        window.take(given_out[-1])
    assert given_out == promised


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_a_selector_restored_from_json_goes_on_with_the_same_draws(config: SelectorConfig) -> None:
    rng = random.Random(5)
    selector = filled(config, {k: 1.0 + k for k in range(40)})
    for key in rng.sample(range(40), 15):
        selector.discard(key)
    for key in range(40, 50):
        selector.add(key)
        selector.ready(key, 2.0)
    other = config.build(json.loads(json.dumps(selector.state())))
    for round in range(30):
        assert other.select(random.Random(round)) == selector.select(random.Random(round))
        key = selector.select(random.Random(round))[0]
        for each in (selector, other):
            each.take(key) if round % 2 else each.discard(key)
            each.add(100 + round)
            each.ready(100 + round, 3.0)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0.01, 100.0)), min_size=1, max_size=60), st.integers(0, 1000))
def test_the_tree_of_sums_keeps_every_weight(changes: list[tuple[int, float]], seed: int) -> None:
    selector, weights = Prioritised(exponent=1.0).build(), {}
    for key, weight in changes:
        if weight > 50 and key in weights:
            selector.discard(key)
            del weights[key]
        else:
            selector.ready(key, weight)
            weights[key] = weight
    assert dict(leaf for leaf in selector.state() if leaf) == weights
    if weights:
        key, probability = selector.select(random.Random(seed))
        assert probability == pytest.approx(weights[key] / sum(weights.values()))
