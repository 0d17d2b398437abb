"""Weights that change while responses run, and responses that are stopped and resumed."""

from dataclasses import replace

import pytest
import torch

from freerun.actors.native import NativeEngine
from freerun.types import CachePolicy, Sampling, Stop
from tests.actors.conftest import assert_same, engine_of, finish, random_model, recomputed, request

OLD, NEW = 3, 4
TEXT = "some prompt"


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in random_model(seed).named_parameters()}


def steps(engine: NativeEngine, count: int) -> dict:
    return {(f.item, f.sample): f.outcome for _ in range(count) for f in engine.step()}


def swapped(policy: CachePolicy, *, before: int = 5, samples: int = 3, fast: bool = True) -> dict:
    """Responses of 12 tokens, of which `before` were made by the old weights (unless they are finished first)."""
    engine = engine_of(random_model(), fast=fast, slots=samples)
    engine.load(OLD, weights(OLD), policy)
    engine.submit(request(0, TEXT, samples, min_p=0.05, max_tokens=12))
    done = steps(engine, before)
    engine.load(NEW, weights(NEW), policy)
    return done | finish(engine)


def test_every_token_carries_the_version_that_produced_it() -> None:
    for trajectory in swapped(CachePolicy.KEEP).values():
        versions = trajectory.version_T[trajectory.action_T].tolist()
        assert versions == [OLD] * 5 + [NEW] * 7
        assert (trajectory.version_T[~trajectory.action_T] == -1).all()
        assert (trajectory.oldest_version, trajectory.newest_version) == (OLD, NEW)
        assert trajectory.cache_policy is CachePolicy.KEEP


@pytest.mark.parametrize("fast", [True, False])
def test_recompute_goes_on_as_if_the_new_weights_had_read_everything(fast: bool) -> None:
    old, new = random_model(OLD), random_model(NEW)
    for trajectory in swapped(CachePolicy.RECOMPUTE, fast=fast).values():
        logp = trajectory.logp_T[trajectory.action_T]
        setting = Sampling(min_p=0.05)
        torch.testing.assert_close(logp[:5], recomputed(old, trajectory, setting)[:5], rtol=0, atol=2e-4)
        torch.testing.assert_close(logp[5:], recomputed(new, trajectory, setting)[5:], rtol=0, atol=2e-4)
        assert trajectory.cache_policy is CachePolicy.RECOMPUTE


def test_keep_goes_on_with_the_keys_and_values_of_the_old_weights() -> None:
    old, new = random_model(OLD), random_model(NEW)
    for trajectory in swapped(CachePolicy.KEEP, samples=1).values():
        tokens = trajectory.tokens_T.tolist()
        known = len(TEXT) + 4
        with torch.no_grad():
            cache = old(torch.tensor([tokens[:known]]), use_cache=True).past_key_values
            logits_TV = new(torch.tensor([tokens[known:-1]]), past_key_values=cache).logits[0]
        logp_TV = logits_TV.log_softmax(-1)
        limit_T1 = logp_TV.amax(-1, keepdim=True) + torch.tensor(0.05).log()
        logp_TV = logp_TV.masked_fill(logp_TV < limit_T1, -torch.inf).log_softmax(-1)
        expected = logp_TV.gather(1, torch.tensor(tokens[known + 1 :])[:, None]).squeeze(1)
        torch.testing.assert_close(trajectory.logp_T[-7:], expected, rtol=0, atol=2e-4)


def test_finish_ends_running_responses_on_the_old_weights_and_admits_none_before_the_swap() -> None:
    engine = engine_of(random_model(), slots=2)
    engine.load(OLD, weights(OLD), CachePolicy.FINISH)
    engine.submit(request(0, TEXT, 3, max_tokens=6))
    engine.step()
    engine.load(NEW, weights(NEW), CachePolicy.FINISH)
    assert engine.version == OLD
    engine.submit(request(1, TEXT, 1, max_tokens=6))
    done = {}
    while engine.version == OLD:
        done |= steps(engine, 1)
        assert set(done) <= {(0, 0), (0, 1)}
    done |= finish(engine)
    for key, trajectory in done.items():
        expected = OLD if key in {(0, 0), (0, 1)} else NEW
        assert set(trajectory.version_T[trajectory.action_T].tolist()) == {expected}


def test_with_nothing_running_every_policy_swaps_at_once() -> None:
    for policy in CachePolicy:
        engine = engine_of(random_model())
        engine.load(NEW, weights(NEW), policy)
        assert engine.version == NEW
        fresh = engine_of(random_model(NEW))
        fresh.version = NEW
        assert_same(finish(engine, request(0, TEXT, 2)), finish(fresh, request(0, TEXT, 2)))


def test_a_sibling_admitted_after_a_swap_reads_its_prompt_with_the_new_weights() -> None:
    new = random_model(NEW)
    engine = engine_of(random_model(), slots=2)
    engine.load(OLD, weights(OLD), CachePolicy.KEEP)
    engine.submit(request(0, TEXT, 1, max_tokens=30))
    engine.step()
    engine.load(NEW, weights(NEW), CachePolicy.KEEP)
    late = finish(engine, request(1, TEXT, 1))[1, 0]
    torch.testing.assert_close(late.logp_T[late.action_T], recomputed(new, late, Sampling()), rtol=0, atol=2e-4)


def test_a_shared_start_is_computed_again_for_new_weights() -> None:
    text = "a start that is long enough to be kept, "
    new = random_model(NEW)
    engine = engine_of(random_model(OLD), slots=4)
    finish(engine, request(0, text + "one"), request(1, text + "two"))
    engine.load(NEW, weights(NEW), CachePolicy.KEEP)
    late = finish(engine, request(2, text + "three"))[2, 0]
    torch.testing.assert_close(late.logp_T[late.action_T], recomputed(new, late, Sampling()), rtol=0, atol=2e-4)


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_response_that_was_paused_and_resumed_is_the_one_that_was_not(after: int) -> None:
    order = request(7, TEXT, 3, seed=5, max_tokens=10)
    whole = finish(engine_of(random_model(), slots=2), order)
    engine = engine_of(random_model(), slots=2)
    engine.submit(order)
    done = steps(engine, after)
    partial = engine.pause([7, 99])
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    assert set(partial) == {7} and len(partial[7]) == 3
    resumed = replace(order, partial=tuple(done.get((7, i), p) for i, p in enumerate(partial[7])))
    assert_same(finish(engine_of(random_model(), slots=3), resumed), whole)


def test_pausing_one_item_leaves_the_others_as_they_are() -> None:
    orders = [request(i, TEXT[: i + 3], 2, seed=i) for i in range(4)]
    whole = finish(engine_of(random_model(), slots=6), *orders)
    engine = engine_of(random_model(), slots=6)
    for order in orders:
        engine.submit(order)
    done = steps(engine, 4)
    engine.pause([0, 2])
    done |= finish(engine)
    assert_same(done, {key: t for key, t in whole.items() if key[0] in (1, 3)})


def test_a_resumed_response_keeps_the_versions_and_log_probs_it_came_with() -> None:
    engine = engine_of(random_model(), slots=4)
    engine.load(OLD, weights(OLD), CachePolicy.KEEP)
    engine.submit(request(0, TEXT, 2))
    steps(engine, 4)
    partial = engine.pause([0])[0]
    assert [t.stop for t in partial] == [None, None]
    engine.load(NEW, weights(NEW), CachePolicy.KEEP)
    for (_, sample), trajectory in finish(engine, replace(request(0, TEXT, 2), partial=partial)).items():
        assert trajectory.version_T[trajectory.action_T].tolist() == [OLD] * 4 + [NEW] * 8
        assert torch.equal(trajectory.logp_T[: len(TEXT) + 4], partial[sample].logp_T)


def test_a_partial_that_has_already_ended_comes_back_as_it_is() -> None:
    ended = finish(engine_of(random_model()), request(0, TEXT, 1))[0, 0]
    assert ended.stop is Stop.LENGTH
    resumed = finish(engine_of(random_model()), replace(request(0, TEXT, 2), partial=(ended, None)))
    assert resumed[0, 0] is ended
    assert resumed[0, 1].num_actions == 12
