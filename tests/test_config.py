"""Configs: shown, changed by dotted keys, dumped, compared."""

import enum
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freerun import config as configs
from freerun.errors import ConfigError


class Kind(enum.StrEnum):
    ONE = "one"
    TWO = "two"


@dataclass(frozen=True, slots=True)
class Inner:
    lr: float = 1e-3
    kind: Kind = Kind.ONE
    names: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    seed: int = 0
    limit: int | None = None
    on: bool = False


def test_every_leaf_is_shown_under_its_dotted_path():
    assert configs.flatten(Outer()) == {
        "inner.lr": 1e-3,
        "inner.kind": Kind.ONE,
        "inner.names": (),
        "inner.mode": "fast",
        "seed": 0,
        "limit": None,
        "on": False,
    }


def test_overrides_are_read_by_the_type_of_the_field():
    text = "inner.lr=2e-4 inner.kind=two inner.names=a,b inner.mode=slow seed=1_000 limit=5 on=yes"
    changes = dict(word.split("=") for word in text.split())
    changed = configs.override(Outer(), changes)
    assert changed == Outer(inner=Inner(2e-4, Kind.TWO, ("a", "b"), "slow"), seed=1000, limit=5, on=True)
    assert configs.override(changed, {"limit": "none"}).limit is None


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("inner.lrr", "1", "inner.lr"),
        ("sead", "1", "seed"),
        ("inner", "1", "recipe function"),
        ("seed.deeper", "1", "not a section"),
        ("seed", "1.5", "int"),
        ("on", "maybe", "bool"),
        ("inner.kind", "three", "one, two"),
        ("inner.mode", "warp", "fast, slow"),
    ],
)
def test_a_bad_override_is_one_error_that_names_what_would_do(key, text, said):
    with pytest.raises(ConfigError) as error:
        configs.override(Outer(), {key: text})
    assert said in str(error.value)


def test_an_override_leaves_the_original_alone():
    original = Outer()
    configs.override(original, {"inner.lr": "9"})
    assert original == Outer()


def test_differences_name_the_path_and_both_values():
    other = configs.override(Outer(), {"inner.lr": "0.5", "limit": "3"})
    assert configs.differences(configs.dump(Outer()), configs.dump(other)) == ["inner.lr: 0.001 -> 0.5", "limit: None -> 3"]
    assert configs.differences(configs.dump(other), configs.dump(other)) == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_key_and_no_value_raises_anything_but_a_config_error(key, text):
    try:
        configs.override(Outer(), {key: text})
    except ConfigError as error:
        assert error.what


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_a_number_written_out_is_read_back(lr, seed):
    changed = configs.override(Outer(), {"inner.lr": repr(lr), "seed": str(seed)})
    assert (changed.inner.lr, changed.seed) == (lr, seed)


def test_reading_configs_imports_no_torch():
    code = "import sys, freerun.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@dataclass(frozen=True, slots=True)
class Pair:
    low: int = 0
    high: int = 10
    betas: tuple[float, float] = (0.9, 0.999)
    widths: tuple[int, ...] = (64, 64)
    scores: tuple[float, float] | None = None
    parts: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError("a pair cannot be like this", given=self, expected="low <= high", todo="correct it")


@dataclass(frozen=True, slots=True)
class Paired:
    pair: Pair = field(default_factory=Pair)
    inner: Inner | None = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("pair.betas", "0.9", "2 values of type float with commas between them, such as 0.9,0.999"),
        ("pair.betas", "0.9,0.99,0.999", "2 values of type float"),
        ("pair.betas", "fast,slow", "such as 0.9,0.999"),
        ("pair.widths", "wide", "any number of values of type int with commas between them, such as 64,64"),
        ("pair.scores", "3", "2 values of type float with commas between them, such as 0.5,0.5, or none"),
        ("pair.parts", "one", "recipe function"),
        ("inner", "1", "Inner, or none"),
    ],
)
def test_a_value_of_several_parts_is_refused_with_how_many_they_are_and_an_example(key, text, said):
    with pytest.raises(ConfigError) as error:
        configs.override(Paired(), {key: text})
    assert said in str(error.value)


def test_a_value_of_several_parts_is_read_part_by_part():
    changed = configs.override(Paired(), {"pair.betas": "0.5, 0.6", "pair.widths": "8", "pair.scores": "-1,1"})
    assert (changed.pair.betas, changed.pair.widths, changed.pair.scores) == ((0.5, 0.6), (8,), (-1.0, 1.0))
    assert configs.override(changed, {"pair.widths": "", "pair.scores": "none"}).pair == Pair(betas=(0.5, 0.6), widths=())


def test_changes_that_only_fit_together_are_taken_in_any_order():
    for order in ({"pair.low": "20", "pair.high": "30"}, {"pair.high": "30", "pair.low": "20"}):
        assert configs.override(Paired(), order).pair == Pair(20, 30)


def test_a_section_that_refuses_its_values_says_which_of_them_the_user_gave():
    with pytest.raises(ConfigError) as error:
        configs.override(Paired(), {"pair.low": "20", "inner.lr": "1"})
    assert (error.value.given, error.value.expected) == ("--pair.low 20", "low <= high")


def test_a_section_is_not_switched_off_and_changed_at_once():
    for order in ({"inner": "none", "inner.lr": "1"}, {"inner.lr": "1", "inner": "none"}):
        with pytest.raises(ConfigError, match="not a section"):
            configs.override(Paired(), order)
    assert configs.override(Paired(), {"inner": "none"}).inner is None


def test_what_is_not_a_number_is_no_value():
    with pytest.raises(ConfigError, match="float"):
        configs.override(Outer(), {"inner.lr": "nan"})


def test_a_section_is_made_once_however_many_of_its_keys_are_changed():
    made = []

    @dataclass(frozen=True)
    class Inner:
        a: int = 0
        b: int = 0

        def __post_init__(self) -> None:
            made.append((self.a, self.b))

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()

    changed = configs.override(Outer(), {"inner.a": "1", "inner.b": "2"})
    assert changed.inner == Inner(1, 2)
    assert made == [(0, 0), (1, 2), (1, 2)]  # as it was, changed, and the one that it is compared with
