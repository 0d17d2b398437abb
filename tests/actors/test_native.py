"""The engine's batching: what shares a step, a slot or a prompt changes nothing about what is said."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from freerun.actors.native import NativeEngine, common_start, passes
from freerun.actors.slots import Stretch, partition
from freerun.errors import DataError
from freerun.types import Failure, Sampling, Stop
from tests.actors.conftest import EOS, assert_same, engine_of, finish, random_model, recomputed, request, responses

LONG = "the quick brown fox jumps over "
ORDERS = [
    request(0, "ab", 3, seed=1),
    request(1, LONG + "a dog", 2, seed=2, max_tokens=25),
    request(2, LONG + "the cat", 4, seed=3, max_tokens=5),
    request(3, "zzzz", 1, seed=4, max_tokens=1),
    request(4, LONG + "a dog", 1, seed=5, temperature=0.5),
    request(5, LONG[:20], 2, seed=6, top_k=4),
]
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
]


@pytest.fixture(scope="module")
def alone() -> dict:
    """Every request on its own, one slot at a time, without sharing a prefix."""
    done = {}
    for order in ORDERS:
        done |= finish(engine_of(random_model(), slots=1, share_prefix=False), order)
    return done


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"slots": 1}, {"slots": 3}, {"slots": 32}, {"slots": 5, "share_prefix": False}, {"slots": 32, "prefill_tokens": 7}],
    ids=str,
)
def test_batching_says_what_each_request_says_alone(alone: dict, options: dict, fast: bool) -> None:
    assert_same(finish(engine_of(random_model(), fast=fast, **options), *ORDERS), alone)


def test_the_same_calls_give_the_same_bits() -> None:
    first, second = (finish(engine_of(random_model(), slots=4), *ORDERS) for _ in range(2))
    for key, trajectory in first.items():
        assert torch.equal(trajectory.tokens_T, second[key].tokens_T)
        assert torch.equal(trajectory.logp_T, second[key].logp_T)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_log_probs_are_those_of_a_full_forward(setting: dict, fast: bool) -> None:
    done = finish(engine_of(random_model(), fast=fast), request(0, "hello world", 8, max_tokens=40, **setting))
    plain = random_model()
    for trajectory in done.values():
        expected = recomputed(plain, trajectory, Sampling(**setting))
        torch.testing.assert_close(trajectory.logp_T[trajectory.action_T], expected, rtol=0, atol=2e-4)


def test_a_greedy_response_is_the_argmax_of_a_full_forward() -> None:
    done = finish(engine_of(random_model()), request(0, "hello", 1, temperature=0.0, max_tokens=30))[0, 0]
    with torch.no_grad():
        best_T = random_model()(done.tokens_T[None], use_cache=False).logits[0, :-1].argmax(-1)
    assert best_T[done.action_T[1:]].tolist() == done.tokens_T[done.action_T].tolist()
    assert done.logp_T.abs().max() == 0


def test_a_groups_prompt_goes_through_the_model_once() -> None:
    engine = engine_of(random_model(), slots=8)
    finish(engine, request(0, LONG, 8))
    assert engine.prefilled == len(LONG)


def test_siblings_admitted_later_take_the_prompt_from_one_that_runs() -> None:
    engine = engine_of(random_model(), slots=2, share_prefix=False)
    done = finish(engine, request(0, LONG, 5, max_tokens=9), request(1, "other", 1, max_tokens=3))
    again = engine.prefilled - len(LONG) - len("other")
    # Each late sibling runs the prompt's last token for its logits; both slots may free in one step, with nobody left to copy.
    assert again <= 3 * len(LONG)
    assert {key for key in done if key[0] == 0} == {(0, i) for i in range(5)}


def test_what_prompts_share_at_their_start_is_computed_once() -> None:
    prompts = [LONG + tail for tail in ("one", "two", "three", "four")]
    orders = [request(i, text, 2, seed=i) for i, text in enumerate(prompts)]
    sharing, separate = engine_of(random_model(), slots=8), engine_of(random_model(), slots=8, share_prefix=False)
    assert_same(finish(sharing, *orders), finish(separate, *orders))
    assert separate.prefilled == sum(map(len, prompts))
    # "two" and "three" share one letter more than all four do.
    assert sharing.prefilled == separate.prefilled - 3 * len(LONG)


def test_a_shared_start_is_kept_for_prompts_that_come_one_by_one() -> None:
    engine = engine_of(random_model(), slots=1)
    counts = []
    for index, tail in enumerate(("one", "two", "three")):
        before = engine.prefilled
        finish(engine, request(index, LONG + tail))
        counts.append(engine.prefilled - before)
    assert counts == [len(LONG) + 3, len(LONG) + 3, 5]


def test_a_response_ends_at_the_end_token_the_token_limit_or_the_context(scripted: Callable[..., NativeEngine]) -> None:
    only_eos = torch.full((64,), -torch.inf)
    only_eos[EOS] = 0.0
    ended = finish(scripted(only_eos, eos=frozenset({EOS})), request(0, "abc"))[0, 0]
    assert (ended.stop, ended.tokens_T.tolist(), ended.text) == (Stop.EOS, [2, 3, 4, EOS], "")
    limited = finish(scripted(torch.zeros(64)), request(0, "abc", max_tokens=7))[0, 0]
    assert (limited.stop, limited.num_actions) == (Stop.LENGTH, 7)
    full = finish(scripted(torch.zeros(64), max_context=10), request(0, "abc", max_tokens=50))[0, 0]
    assert (full.stop, len(full.tokens_T)) == (Stop.CONTEXT, 10)


def test_a_stop_string_ends_a_response_across_token_boundaries(scripted: Callable[..., NativeEngine]) -> None:
    either = torch.full((64,), -torch.inf)
    either[[2, 3]] = 0.0
    for outcome in finish(scripted(either), request(0, "z", 32, max_tokens=200, stop=("abba", "bbbb"))).values():
        assert outcome.stop is Stop.STRING
        assert outcome.text.endswith(("abba", "bbbb"))
        assert "abba" not in outcome.text[:-1] and "bbbb" not in outcome.text[:-1]


def test_samples_of_uniform_logits_are_uniform_and_uncorrelated(scripted: Callable[..., NativeEngine]) -> None:
    orders = [request(i, "a" * (i + 1), 16, seed=i, max_tokens=64) for i in range(4)]
    done = finish(scripted(torch.zeros(64)), *orders)
    token_BT = torch.tensor(list(responses(done).values()))
    counts = torch.bincount(token_BT.flatten(), minlength=64)
    expected = token_BT.numel() / 64
    # 63 degrees of freedom: 103.4 is exceeded once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 103.4
    correlation = torch.corrcoef(token_BT.double()) - torch.eye(64)
    assert correlation.abs().max() < 5 / math.sqrt(64)
    assert all(torch.allclose(t.logp_T[t.action_T], torch.tensor(-math.log(64))) for t in done.values())


def test_logits_that_are_not_finite_fail_that_response_only(scripted: Callable[..., NativeEngine]) -> None:
    engine = scripted(torch.zeros(64))
    plain = engine._forward.__call__

    class SometimesBroken(type(engine._forward)):
        def __call__(self, token_N, plan, row_R):
            logits = plain(token_N, plan, row_R).clone()
            if row_R is None and len(token_N) == 3:
                logits[1] = torch.nan
            return logits

    engine._forward = SometimesBroken(torch.zeros(64))
    done = finish(engine, request(0, "abc", 3, max_tokens=4))
    broken = done.pop((0, 1))
    assert isinstance(broken, Failure) and "not finite" in broken.message
    assert [t.num_actions for t in done.values()] == [4, 4]


def test_a_prompt_without_room_is_refused_and_nothing_is_queued() -> None:
    engine = engine_of(random_model(), max_context=10)
    for text in ("a" * 10, ""):
        with pytest.raises(DataError, match="leaves no room"):
            engine.submit(request(0, text))
    assert engine.num_waiting == 0


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_partition_covers_every_slot_and_costs_no_more_than_one_run_or_single_runs(lengths: list[int]) -> None:
    runs = partition(lengths, 512)
    assert [slot for first, last, _ in runs for slot in range(first, last)] == list(range(len(lengths)))
    assert all(length >= max(lengths[first:last]) for first, last, length in runs)

    def cost(runs: list[tuple[int, int, int]]) -> int:
        return sum(48 + (last - first) * length for first, last, length in runs)

    rounded = [-(-n // 16) * 16 for n in lengths]
    assert cost(runs) <= cost([(0, len(lengths), max(rounded))])
    assert cost(runs) <= cost([(i, i + 1, n) for i, n in enumerate(rounded)])


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), budget=st.integers(1, 40))
def test_passes_keep_the_budget_and_cover_every_token_in_order(lengths: list[int], budget: int) -> None:
    stretches = [Stretch(slot, 3, list(range(n))) for slot, n in enumerate(lengths)]
    batches = passes(stretches, budget)
    assert all(0 < sum(len(s.tokens) for _, s in batch) <= budget for batch in batches)
    for index, stretch in enumerate(stretches):
        pieces = [piece for batch in batches for i, piece in batch if i == index]
        assert [t for piece in pieces for t in piece.tokens] == list(stretch.tokens)
        assert [piece.start for piece in pieces] == [3 + sum(len(p.tokens) for p in pieces[:i]) for i in range(len(pieces))]


def test_a_common_start_is_what_all_sequences_share() -> None:
    assert common_start([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert common_start([(1, 2)]) == 2
    assert common_start([(1,), (2,)]) == 0
