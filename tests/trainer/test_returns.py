"""Returns to go of what actors play: written when an episode is over, whatever chunks and streams it came in.

Shapes: T steps of a chunk, N environments.
"""

import math
import random

import pytest
import torch

from freerun.store.selectors import Uniform
from freerun.trainer.control_config import ReplayConfig
from freerun.trainer.sources import Source

GAMMA = 0.5


def source_of(capacity=100):
    return Source(ReplayConfig(capacity=capacity, sampler=Uniform()), capacity, gamma=GAMMA, directory=None, returns=True)


def chunk(reward, episode, step, over=()):
    """Columns [T, N] from rows of numbers; `over` are places where an episode is cut."""
    reward_TN = torch.tensor(reward)
    truncated_TN = torch.zeros(reward_TN.shape, dtype=torch.bool)
    for t, n in over:
        truncated_TN[t, n] = True
    return {
        "reward": reward_TN,
        "episode": torch.tensor(episode),
        "step": torch.tensor(step, dtype=torch.int32),
        "terminated": torch.zeros_like(truncated_TN),
        "truncated": truncated_TN,
    }


def returns(source):
    return source.storage.columns["mc_return"][: source.storage.total].tolist()


def nan(values):
    return [math.isnan(v) for v in values]


def test_a_return_is_unknown_until_the_episode_is_over_and_then_known_for_all_its_rows():
    source = source_of()
    source.insert(0, 0, chunk([[1.0], [2.0]], [[7], [7]], [[0], [1]]))
    assert nan(returns(source)) == [True, True]
    source.insert(1, 0, chunk([[4.0], [8.0]], [[7], [8]], [[2], [0]], over=[(0, 0)]))
    assert returns(source)[:3] == [1 + 1 + 1.0, 2 + 2.0, 4.0]
    assert nan(returns(source)) == [False, False, False, True]


def test_streams_of_several_environments_and_actors_do_not_mix():
    source = source_of()
    source.insert(0, 0, chunk([[1.0, 10.0]], [[1, 2]], [[0, 0]]))
    source.insert(1, 1, chunk([[100.0, 0.0]], [[3, 4]], [[0, 0]]))
    source.insert(2, 0, chunk([[1.0, 10.0]], [[1, 2]], [[1, 1]], over=[(0, 0), (0, 1)]))
    assert returns(source)[:2] == [1.5, 15.0]
    assert nan(returns(source)) == [False, False, True, True, False, False]


def test_an_episode_whose_end_was_lost_has_no_return():
    source = source_of()
    source.insert(0, 0, chunk([[1.0]], [[1]], [[0]]))
    source.insert(1, 0, chunk([[2.0]], [[9]], [[0]], over=[(0, 0)]))
    assert nan(returns(source)) == [True, False]


def test_an_episode_longer_than_the_ring_has_returns_for_what_is_left_of_it():
    source = source_of(capacity=3)
    for t in range(5):
        source.insert(t, 0, chunk([[float(t)]], [[1]], [[t]], over=[(0, 0)] if t == 4 else []))
    assert source.storage.columns["mc_return"].tolist() == [3.0 + 2.0, 4.0, 2.0 + 1.5 + 1.0]


def test_a_checkpoint_keeps_episodes_under_way():
    source, other = source_of(), source_of()
    source.insert(0, 0, chunk([[1.0]], [[1]], [[0]]))
    other.storage.load(source.storage.state())
    other.returns.load(source.returns.state())
    other.insert(1, 0, chunk([[2.0]], [[1]], [[1]], over=[(0, 0)]))
    assert returns(other) == [2.0, 2.0]


@pytest.mark.parametrize("seed", range(20))
def test_returns_are_those_of_the_whole_episode_for_any_lengths_and_chunks(seed):
    """Random episodes of two environments, cut into random chunks, against sums by definition."""
    draw = random.Random(seed)
    streams = []
    for n in range(2):
        rows, number = [], 0
        while len(rows) < 40:
            length = draw.randint(1, 9)
            rows += [(draw.random(), 100 * n + number, t, t == length - 1) for t in range(length)]
            number += 1
        streams.append(rows[:40])
    source, start, places = source_of(), 0, {}
    while start < 40:
        steps = min(draw.randint(1, 7), 40 - start)
        part = [[streams[n][start + t] for n in range(2)] for t in range(steps)]
        columns = [[[row[i] for row in rows] for rows in part] for i in range(3)]
        over = [(t, n) for t in range(steps) for n in range(2) if part[t][n][3]]
        before = source.storage.total
        source.insert(start, 0, chunk(*columns, over=over))
        places |= {(n, start + t): before + 2 * t + n for t in range(steps) for n in range(2)}
        start += steps
    for n, rows in enumerate(streams):
        for t, (_, episode, _, _) in enumerate(rows):
            rest = [row for row in rows[t:] if row[1] == episode]
            found = source.storage.columns["mc_return"][places[n, t]].item()
            expected = sum(GAMMA**k * row[0] for k, row in enumerate(rest)) if rest[-1][3] else math.nan
            assert found == pytest.approx(expected, nan_ok=True)
