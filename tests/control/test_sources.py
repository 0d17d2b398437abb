"""Where rows of batches come from: samplers draw what they promise, data sets know their returns, batches have their shares."""

import numpy as np
import pytest
import torch
from control.rows import GAMMA, chunk, column
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.datasets.base import Episodes
from freerun.errors import ConfigError, StaleItem
from freerun.store.mix import Share
from freerun.store.phases import Phase, Portion
from freerun.store.selectors import Fifo, Prioritised, Recency, Uniform
from freerun.trainer.control_config import DatasetConfig, ReplayConfig
from freerun.trainer.samplers import ByPriority, SumTree, sampler_of
from freerun.trainer.sources import Source, Sources, load
from freerun.trainer.storage import Storage

# --- samplers ----------------------------------------------------------------------------------------------------------------


def filled(num: int, capacity: int) -> Storage:
    storage = Storage(capacity)
    for item in range(num):
        storage.insert_chunk(item, 0, chunk(column(float(item)), episodes=column(0), steps=column(item)))
    return storage


def drawn(sampler, storage: Storage, num: int = 4000) -> list[float]:
    """Rewards of what is drawn, which are the numbers of the rows."""
    place_B, _ = sampler.draw(storage, num, torch.Generator().manual_seed(0))
    return storage.columns["reward"][place_B].tolist()


def test_uniform_rows_are_all_that_are_live_and_about_equally_often() -> None:
    storage = filled(13, 8)
    storage.keep_from(7)
    seen = drawn(sampler_of(Uniform(), 8), storage)
    assert set(seen) == {7.0, 8.0, 9.0, 10.0, 11.0, 12.0}
    counts = torch.tensor([seen.count(n) for n in set(seen)])
    # Six standard deviations of a binomial count.
    assert (counts - 4000 / 6).abs().max() < 6 * (4000 * 5 / 36) ** 0.5


def test_recency_draws_the_newest_rows_only() -> None:
    assert set(drawn(sampler_of(Recency(3), 8), filled(13, 8))) == {10.0, 11.0, 12.0}
    assert set(drawn(sampler_of(Recency(100), 8), filled(2, 8))) == {0.0, 1.0}


def test_priorities_are_followed_to_less_than_one_draw_and_probabilities_are_reported() -> None:
    storage, sampler = filled(4, 8), sampler_of(Prioritised(1.0), 8)
    sampler.inserted(torch.arange(4))
    sampler.surprised(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    place_B, relative_B = sampler.draw(storage, 1000, torch.Generator().manual_seed(0))
    counts = torch.bincount(place_B, minlength=4)
    assert (counts - torch.tensor([100, 200, 300, 400])).abs().max() <= 1
    # Relative to uniform, which is a quarter.
    assert relative_B == pytest.approx(torch.tensor([0.4, 0.8, 1.2, 1.6])[place_B], rel=1e-4)


def test_a_new_row_has_the_largest_priority_so_far() -> None:
    sampler = ByPriority(1.0, 8)
    sampler.inserted(torch.tensor([0]))
    sampler.surprised(torch.tensor([0]), torch.tensor([5.0]))
    sampler.inserted(torch.tensor([1]))
    assert sampler.state()["weights"][:2].tolist() == pytest.approx([5.0, 5.0])


def test_rows_that_were_given_up_are_never_drawn_by_priority() -> None:
    storage, sampler = filled(13, 8), ByPriority(1.0, 8)
    sampler.inserted(torch.arange(8))
    storage.keep_from(9)
    assert set(drawn(sampler, storage)) == {9.0, 10.0, 11.0, 12.0}


def test_rows_cannot_be_drawn_in_order() -> None:
    with pytest.raises(ConfigError, match="Uniform, Recency or Prioritised"):
        sampler_of(Fifo(), 8)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_sum_tree_finds_the_leaf_that_a_running_sum_finds(data) -> None:
    capacity = data.draw(st.integers(1, 40))
    tree, weights = SumTree(capacity), [0.0] * capacity
    for _ in range(data.draw(st.integers(1, 5))):
        leaves = data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=6))
        values = [float(data.draw(st.integers(0, 9))) for _ in leaves]
        tree.set(np.array(leaves), np.array(values))
        for leaf, value in zip(leaves, values, strict=True):
            weights[leaf] = value
    assert tree.leaves.tolist() == weights
    assert tree.total == sum(weights)
    for mass in range(int(sum(weights))):
        (found,), (weight,) = tree.find(np.array([(mass + 0.5) / sum(weights)]))
        below = sum(weights[:found])
        assert below <= mass + 0.5 <= below + weights[found]
        assert weight == weights[found] > 0


# --- sources and batches -----------------------------------------------------------------------------------------------------


def recorded() -> Episodes:
    """Episodes with rewards 1, 2, 3 (terminated) and 10, 20 (cut)."""
    ended, cut = torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    ended[2] = cut[4] = True
    obs = torch.tensor([0.0, 1.0, 2.0, 4.0, 5.0])[:, None]
    return Episodes(
        name="two",
        columns={
            "obs": obs,
            "next_obs": obs + 1.0,
            "action": torch.zeros(5, 1),
            "reward": torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0]),
            "terminated": ended,
            "truncated": cut,
            "episode": torch.tensor([0, 0, 0, 1, 1]),
            "step": torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32),
        },
    )


class Recorded:
    def build(self) -> Episodes:
        return recorded()


def dataset(**settings: object) -> Source:
    config = DatasetConfig(data=Recorded(), **settings)
    return load(config, recorded(), recorded().columns["reward"], gamma=GAMMA)


def test_a_data_set_knows_its_returns_to_go_and_that_no_version_made_it() -> None:
    columns = dataset().storage.columns
    assert columns["mc_return"].tolist() == [1 + 2 / 2 + 3 / 4, 2 + 3 / 2, 3.0, 10 + 20 / 2, 20.0]
    assert set(columns["version"].tolist()) == {-1}
    assert columns["log_prob"].isnan().all()


def test_the_best_share_of_a_data_set_is_its_episodes_of_highest_return() -> None:
    best = dataset(best_share=0.5).storage
    assert best.columns["reward"].tolist() == [10.0, 20.0]
    assert best.read(torch.tensor([0]), ("reward",), gamma=GAMMA, steps=3)["reward"].tolist() == [10 + 20 / 2]


def sources(batch: int, *, names: set[str], **built: Source) -> Sources:
    return Sources(
        built, batch=batch, names=frozenset(names), device=torch.device("cpu"), generator=torch.Generator().manual_seed(0)
    )


def replay(num: int, **settings: object) -> Source:
    source = Source(ReplayConfig(capacity=64, **settings), 64, gamma=GAMMA, directory=None)
    for item in range(num):
        columns = chunk(column(-float(item)), episodes=column(0), steps=column(item))
        columns |= {"version": torch.tensor([[item]]), "log_prob": torch.zeros(1, 1)}
        source.sampler.inserted(source.storage.insert_chunk(item, 0, columns))
    return source


def test_batches_of_a_phase_have_exact_shares_and_say_which_source_a_row_is_from() -> None:
    both = sources(8, names={"reward", "source", "lag"}, dataset=dataset(), replay=replay(20))
    shares = (Portion(source="dataset", share=Share(1.0, 0.0, 3)), Portion(source="replay", share=Share(1.0)))
    both.begin(0, Phase(updates=4, sources=shares), rollouts=False)
    seen = []
    for batches in both.batches(4, step=0, version=19, max_age=None):
        union = batches.of("")
        seen.append((union["source"] == 0).sum().item())
        assert ((union["reward"] > 0) == (union["source"] == 0)).all()
        assert batches.of("replay")["lag"].tolist() == [19 + r for r in batches.of("replay")["reward"].tolist()]
    # Shares of 1:1, 2/3:1, 1/3:1 and 0:1.
    assert seen == [4, 3, 2, 0]


def test_drawing_several_updates_at_once_or_one_by_one_is_the_same_stream_of_rows() -> None:
    one, many = (sources(8, names={"reward"}, replay=replay(20)) for _ in range(2))
    for each in (one, many):
        each.begin(0, Phase(updates=6), rollouts=False)
    together = [b.of("")["reward"] for b in many.batches(6, step=0, version=19, max_age=None)]
    apart = [next(one.batches(1, step=i, version=19, max_age=None)).of("")["reward"] for i in range(6)]
    assert torch.equal(torch.cat(together), torch.cat(apart))


def test_weights_of_prioritised_rows_undo_as_much_bias_as_asked_and_are_at_most_one() -> None:
    source = replay(4, sampler=Prioritised(1.0), correction=1.0)
    source.sampler.surprised(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    rows = source.draw(1000, frozenset({"reward"}), torch.Generator().manual_seed(0), version=0)
    assert rows["weight"] == pytest.approx(1.0 / (1.0 + rows["row"].float()), rel=1e-4)


def test_a_row_that_is_too_old_is_refused_when_it_is_drawn() -> None:
    old = sources(8, names={"reward"}, replay=replay(20))
    old.begin(0, Phase(updates=1), rollouts=False)
    with pytest.raises(StaleItem, match=r"lag 3[0-9]"):
        next(old.batches(1, step=0, version=39, max_age=20))


def test_a_phase_with_a_source_that_nobody_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        sources(8, names={"reward"}, replay=replay(3)).begin(
            0, Phase(updates=1, sources=(Portion(source="nowhere"),)), rollouts=False
        )


def test_a_phase_without_actors_draws_from_data_sets_and_one_with_them_from_everything() -> None:
    both = sources(8, names={"reward"}, dataset=dataset(), replay=replay(0))
    both.begin(0, Phase(updates=1), rollouts=False)
    assert len(next(both.batches(1, step=0, version=0, max_age=None)).by_source["dataset"]["reward"]) == 8
    both.begin(1, Phase(env_steps=8), rollouts=False)
    with pytest.raises(ConfigError, match="source 'replay' has no rows"):
        next(both.batches(1, step=0, version=0, max_age=None))


def test_restored_sources_go_on_with_the_very_rows_that_the_saved_ones_would_have_drawn() -> None:
    phase = Phase(updates=9)
    first = sources(7, names={"reward"}, dataset=dataset(), replay=replay(20, sampler=Prioritised(0.6)))
    first.begin(0, phase, rollouts=False)
    list(first.batches(3, step=0, version=19, max_age=None))
    again = sources(7, names={"reward"}, dataset=dataset(), replay=replay(0, sampler=Prioritised(0.6)))
    again.load(first.state(), [phase], rollouts=lambda phase: False)
    for a, b in zip(*(s.batches(3, step=3, version=19, max_age=None) for s in (first, again)), strict=True):
        assert torch.equal(a.of("")["reward"], b.of("")["reward"])
