"""The reward pool: order, limits, deadlines, retries, and what becomes of functions that misbehave."""

import asyncio
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import pytest

from freerun.errors import ConfigError, RewardError
from freerun.rewards.pool import RewardConfig, RewarderExecutor, RewardPool, function_name, prompt_text
from freerun.types import Failure, FailureKind, Message, Prompt, RewardRequest, RewardResult

QUICK = RewardConfig(concurrency=4, deadline=0.1, retries=1)
HERE = RewardConfig(threads=False)
WAYS = pytest.mark.parametrize("config", [QUICK, HERE], ids=["in threads", "at once"])


def requests(*completions, meta=None):
    return [RewardRequest(Prompt(f"p{i}", "question", meta or {}), c) for i, c in enumerate(completions)]


def score(function, items, config=QUICK):
    async def main():
        pool = RewardPool(function, config)
        try:
            return await pool.score(items)
        finally:
            await pool.close()

    return asyncio.run(main())


def reward_threads():
    return [t for t in threading.enumerate() if t.name == "reward"]


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")


def length(prompt, completion, meta):
    return len(completion)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    wait_until(lambda: not reward_threads())


def test_rewards_come_in_the_order_of_the_requests_whatever_the_order_of_completion():
    async def slow_first(prompt, completion, meta):
        await asyncio.sleep(0.05 / int(completion))
        return int(completion)

    assert [r.value for r in score(slow_first, requests("1", "2", "3"))] == [1.0, 2.0, 3.0]


@WAYS
def test_sync_and_async_functions_get_the_prompt_the_completion_and_the_meta(config):
    def sync(prompt, completion, meta):
        return RewardResult(1.5, {"part": 2}, {"saw": [prompt, completion, meta["answer"]]})

    async def asynchronous(prompt, completion, meta):
        return sync(prompt, completion, meta)

    expected = [RewardResult(1.5, {"part": 2.0}, {"saw": ["question", "x", "7"]})]
    assert score(sync, requests("x", meta={"answer": "7"}), config) == expected
    assert score(asynchronous, requests("x", meta={"answer": "7"}), config) == expected


def test_of_a_chat_the_function_sees_the_last_turn():
    assert prompt_text(Prompt("p", (Message("system", "be brief"), Message("user", "1+1")))) == "1+1"


@pytest.mark.parametrize("returned", [1, 0.5, True])
def test_any_finite_real_number_is_a_reward(returned):
    (result,) = score(lambda *_: returned, requests("x"))
    assert result == RewardResult(float(returned)) and type(result.value) is float


@WAYS
@pytest.mark.parametrize(
    "returned", [float("nan"), float("inf"), None, "1.0", [1.0], RewardResult(0.0, {"form": float("nan")})]
)
def test_a_reward_that_is_no_finite_number_stops_the_run_and_names_the_function_and_what_it_returned(returned, config):
    def wrong(prompt, completion, meta):
        return returned

    with pytest.raises(RewardError) as caught:
        score(wrong, requests("x"), config)
    assert "wrong" in caught.value.what and "p0" in caught.value.what
    assert repr(returned) in caught.value.given


@WAYS
def test_a_function_that_always_raises_is_called_again_and_then_is_a_typed_failure_of_that_response_only(config):
    calls = []

    def picky(prompt, completion, meta):
        calls.append(completion)
        if completion == "bad":
            raise KeyError("no such key")
        return 1.0

    good, bad = score(picky, requests("good", "bad"), config)
    assert good == RewardResult(1.0)
    assert isinstance(bad, Failure) and bad.kind is FailureKind.VERIFIER and bad.attempts == 2
    assert "picky" in bad.where and "no such key" in bad.message
    assert calls.count("bad") == 2


@WAYS
def test_what_a_function_says_too_much_when_it_raises_is_cut(config):
    def flood(prompt, completion, meta):
        raise ValueError("x" * (1 << 20))

    (failure,) = score(flood, requests("a"), config)
    assert failure.message.startswith("ValueError: xxx") and len(failure.message) < 1100


@WAYS
def test_a_function_that_raises_once_gets_its_reward_at_the_second_attempt(config):
    calls = []

    def flaky(prompt, completion, meta):
        calls.append(completion)
        if len(calls) == 1:
            raise ConnectionError("reset")
        return 1.0

    assert score(flaky, requests("x"), config) == [RewardResult(1.0)]


@WAYS
def test_stop_iteration_from_a_function_is_a_failure_and_not_a_hang(config):
    (failure,) = score(lambda *_: next(iter(())), requests("x"), replace(config, deadline=60.0))
    assert failure.kind is FailureKind.VERIFIER and "StopIteration" in failure.message


def test_without_threads_a_function_runs_on_the_thread_that_asks_and_in_the_order_of_the_requests():
    seen = []

    def remembers(prompt, completion, meta):
        seen.append((threading.current_thread(), completion))
        return 1.0

    score(remembers, requests(*"abc"), HERE)
    assert seen == [(threading.current_thread(), completion) for completion in "abc"]


def test_a_simulated_delay_is_waited_for_without_threads_too():
    assert score(length, requests("abc"), RewardConfig(threads=False, delay_median=1e-4)) == [RewardResult(3.0)]


def test_a_hung_sync_call_is_abandoned_and_the_others_are_scored():
    release = threading.Event()

    def hangs_on_bad(prompt, completion, meta):
        if completion == "bad":
            release.wait()
        return 1.0

    outcomes = score(hangs_on_bad, requests("bad", *"abcdefgh"), RewardConfig(concurrency=1, deadline=0.05, retries=1))
    release.set()
    assert outcomes[0].kind is FailureKind.TIMEOUT and outcomes[0].attempts == 2
    assert outcomes[1:] == [RewardResult(1.0)] * 8


def test_a_hung_async_call_is_cancelled_and_is_a_timeout():
    cancelled = []

    async def hangs(prompt, completion, meta):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(completion)

    (failure,) = score(hangs, requests("x"), RewardConfig(deadline=0.05, retries=0))
    assert failure.kind is FailureKind.TIMEOUT and failure.attempts == 1
    assert cancelled == ["x"]


def test_more_hung_calls_than_allowed_stop_the_run():
    release = threading.Event()

    def hangs(prompt, completion, meta):
        release.wait()

    with pytest.raises(RewardError, match="hangs"):
        score(hangs, requests(*"abcdef"), RewardConfig(concurrency=2, deadline=0.05, retries=0, max_hung=3))
    release.set()


def test_a_hung_call_that_returns_late_no_longer_counts_as_hung():
    release = threading.Event()

    async def main():
        pool = RewardPool(lambda *_: release.wait(), RewardConfig(deadline=0.02, retries=0))
        await pool.score(requests("x"))
        hung = pool.num_hung
        release.set()
        while pool.num_hung:
            await asyncio.sleep(0.01)
        await pool.close()
        return hung

    assert asyncio.run(asyncio.wait_for(main(), 30)) == 1


def test_never_more_calls_run_at_once_than_the_limit_even_from_overlapping_scores():
    running, most, lock = 0, 0, threading.Lock()

    def counts(prompt, completion, meta):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return 1.0

    async def main():
        pool = RewardPool(counts, RewardConfig(concurrency=3))
        await asyncio.gather(pool.score(requests(*"abcdef")), pool.score(requests(*"ghijkl")))
        await pool.close()

    asyncio.run(main())
    assert most <= 3


def test_cancelling_a_score_leaves_nothing_running():
    release = threading.Event()

    async def main():
        pool = RewardPool(lambda *_: release.wait(), RewardConfig())
        task = asyncio.ensure_future(pool.score(requests("x", "y")))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        await pool.close()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()


def test_simulated_delays_are_drawn_from_their_seed():
    draws = [RewardPool(length, RewardConfig(delay_seed=seed))._delays.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert score(length, requests("abc"), RewardConfig(delay_median=1e-4)) == [RewardResult(3.0)]


def test_limits_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="deadline"):
        RewardConfig(deadline=0.0)


def test_functions_are_named_through_partials_methods_and_objects():
    @dataclass
    class Judge:
        def __call__(self, prompt, completion, meta):
            return 0.0

        def grade(self, prompt, completion, meta):
            return 0.0

    assert function_name(partial(length)).endswith(".length")
    assert function_name(Judge().grade).endswith("Judge.grade")
    assert function_name(Judge()).endswith("Judge")


def test_the_executor_builds_the_function_from_the_task_config():
    class TaskConfig:
        def build(self):
            return self

        reward = staticmethod(length)

    async def main():
        executor = RewarderExecutor(TaskConfig(), QUICK)
        outcomes = await executor.score(requests("ab", ""))
        await executor.close()
        return outcomes

    assert [r.value for r in asyncio.run(main())] == [2.0, 0.0]
