"""What carries results of programs to their judge: plain data, asserts taken apart, and comparison."""

import json

import pytest

from freerun.rewards import asserts
from freerun.rewards.python_exec import same
from freerun.rewards.trials import NotPlain, decode, encode


def test_an_assert_is_taken_apart_into_calls_of_the_program_and_a_condition():
    (parts,) = asserts.take_apart(["assert math.isclose(area(2)[0], 4 * math.pi) and _x"], "_x = 1", None)
    assert parts == asserts.Parts("math.isclose(__0, 4 * math.pi) and _x", {"__0": "area(2)[0]"}, ("math",))
    (parts,) = asserts.take_apart(["assert Stack(1).push(2).size() == len(f([y for y in range(3)]))"], "", "f")
    assert parts.condition == "_0 == len(_1)"
    assert parts.calls == {"_0": "Stack(1).push(2).size()", "_1": "f([y for y in range(3)])"}


def test_plain_data_survives_its_encoding_and_nothing_else_is_encoded():
    for value in (
        None,
        True,
        3,
        -2.5,
        float("inf"),
        "é",
        2j,
        b"\xff",
        [1, (2, [3])],
        {1, 2},
        frozenset({3}),
        {(1, 2): {"a": [None]}},
    ):
        again = decode(json.loads(json.dumps(encode(value))))
        assert again == value and type(again) is type(value)
    for value in (object(), len, iter([]), range(3)):
        with pytest.raises(NotPlain):
            encode(value)


@pytest.mark.parametrize(
    "data", [[1], {"list": 3}, {"set": [{"list": []}]}, {"dict": [[1]]}, {"complex": ["x"]}, {"other": 1}, {"a": 1, "b": 2}, {}]
)
def test_data_that_the_encoding_would_not_give_is_refused(data):
    with pytest.raises(ValueError):
        decode(data)


def test_values_are_compared_as_json_with_a_tolerance_for_numbers():
    assert same((1, [2]), [1, [2]], 0.0) and same({1: (True,)}, {"1": [True]}, 0.0) and same({None: 1}, {"null": 1}, 0.0)
    assert same(0.1 + 0.2, 0.3, 1e-6) and same(2.0, 2, 0.0) and not same(0.31, 0.3, 1e-6)
    assert not same(10**400, 1.5, 1e-6) and not same(10**20 + 1, 10**20, 1e-6)
    for found, expected in (
        (1, True),
        (True, 1),
        ("1", 1),
        (None, 0),
        ([1], [1, 2]),
        ({1}, [1]),
        ({"a": 1}, {"b": 1}),
        (1j, 1),
    ):
        assert not same(found, expected, 1e-6)
