"""Packs against what they stand for: each trajectory alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freerun.trainer.packing import Pack, allocate, packs_of_rows, packs_of_trees


def test_allocation_by_hand() -> None:
    # Longest first: 8, 7 and 5 open three; 3 goes to 7, the first with room; 2 beside 8 and 1 beside 5, which have one each.
    assert allocate([5, 3, 8, 2, 7, 1], 10) == [[2, 3], [4, 1], [0, 5]]


def test_allocation_opens_the_asked_number_of_micro_batches_first() -> None:
    assert allocate([4, 3, 2, 1], 100, minimum=3) == [[0, 3], [1], [2]]


def test_a_sequence_beyond_the_capacity_is_alone() -> None:
    assert allocate([3, 50, 3], 10) == [[1], [0, 2]]


def test_padding_counts_when_rows_are_padded() -> None:
    assert allocate([4, 2, 2], 8) == [[0, 1, 2]]
    assert allocate([4, 2, 2], 8, padded=True) == [[0, 1], [2]]


@given(st.lists(st.integers(1, 30)), st.integers(1, 40), st.booleans())
def test_allocation_loses_nothing_and_keeps_the_capacity(lengths, capacity, padded) -> None:
    bins = allocate(lengths, capacity, padded=padded)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        cost = len(b) * max(lengths[i] for i in b) if padded else sum(lengths[i] for i in b)
        assert cost <= capacity or len(b) == 1


@st.composite
def trajectories(draw) -> tuple[list[Tensor], list[Tensor]]:
    """Over three tokens, so that prefixes coincide; action tokens anywhere but in front, as in multi-turn data."""
    texts = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=6), min_size=1, max_size=8))
    tokens, actions = [], []
    for text in texts:
        flags = draw(st.lists(st.booleans(), min_size=len(text) - 2, max_size=len(text) - 2))
        tokens.append(torch.tensor(text))
        actions.append(torch.tensor([False, *flags, True]))
    return tokens, actions


def contexts(pack: Pack, tokens: list[Tensor], actions: list[Tensor]) -> dict[tuple[int, int], tuple[tuple[int, ...], int]]:
    """By (trajectory, number of the action token): what the network sees when it predicts it, in order, and the token."""
    width = pack.tokens_RL.shape[1]
    found = {}
    for row, token, slot in zip(pack.row_M.tolist(), pack.token_M.tolist(), pack.slot_M.tolist(), strict=True):
        where = int(pack.predicts_U[row])
        if pack.mask_NN is None:
            seen = pack.tokens_RL[where // width, : where % width + 1]
        else:
            attended = pack.mask_NN[where].nonzero().squeeze(-1)
            depths = pack.positions_RL[0, attended]
            assert sorted(depths.tolist()) == list(range(len(attended))), "each depth once"
            seen = pack.tokens_RL[0, attended[depths.argsort()]]
        found[pack.members[slot // pack.shape_BT[1]], slot % pack.shape_BT[1]] = (tuple(seen.tolist()), token)
    return found


def expected_contexts(tokens: list[Tensor], actions: list[Tensor]) -> dict[tuple[int, int], tuple[tuple[int, ...], int]]:
    return {
        (i, number): (tuple(tokens[i][:place].tolist()), int(tokens[i][place]))
        for i in range(len(tokens))
        for number, place in enumerate(actions[i].nonzero().squeeze(-1).tolist())
    }


@settings(max_examples=40)
@given(trajectories(), st.integers(1, 30), st.sampled_from(["rows", "tree", "full tree"]))
def test_every_action_token_is_predicted_from_its_own_prefix_and_nothing_else(data, budget, kind) -> None:
    tokens, actions = data
    if kind == "rows":
        packs = packs_of_rows(tokens, actions, budget=budget)
    else:
        packs = packs_of_trees(tokens, actions, budget=budget, balance=kind == "tree")
    found = [contexts(pack, tokens, actions) for pack in packs]
    assert {k: v for pack in found for k, v in pack.items()} == expected_contexts(tokens, actions)
    assert sorted(i for pack in packs for i in pack.members) == list(range(len(tokens)))
    for pack in packs:
        assert pack.computed <= budget or len(pack.members) == 1
        assert (pack.row_M.diff() >= 0).all() and (pack.predicts_U.diff() > 0).all()


@settings(max_examples=40)
@given(trajectories())
def test_a_tree_holds_each_distinct_prefix_once(data) -> None:
    tokens, actions = data
    (pack,) = packs_of_trees(tokens, actions, budget=1000)
    inputs = [t[: int(a.nonzero()[-1])].tolist() for t, a in zip(tokens, actions, strict=True)]
    assert pack.computed == len({tuple(i[: n + 1]) for i in inputs for n in range(len(i))})
    assert pack.padding == 0


@settings(max_examples=40)
@given(trajectories(), st.integers(8, 30))
def test_balancing_needs_no_more_packs_and_makes_the_largest_no_larger(data, budget) -> None:
    even = packs_of_trees(*data, budget=budget)
    greedy = packs_of_trees(*data, budget=budget, balance=False)
    assert len(even) <= len(greedy)
    assert max(p.computed for p in even) <= max(p.computed for p in greedy)


def test_siblings_share_their_prompt_and_groups_a_few_shot_prefix() -> None:
    shots, prompts, answers = [9] * 40, [[1, 2], [3, 4, 5]], [[6, 7, 0], [6, 8, 0], [5, 0]]
    texts = [shots + prompt + answer for prompt in prompts for answer in answers]
    tokens = [torch.tensor(t) for t in texts]
    actions = [torch.tensor([i >= len(t) - len(a) for i in range(len(t))]) for t, a in zip(texts, answers * 2, strict=True)]
    (pack,) = packs_of_trees(tokens, actions, budget=1000)
    # The shots once, each prompt once; of the answers 6, 7, 8 and 5 (the first 6 shared), and never the closing 0.
    assert pack.computed == 40 + 2 + 3 + 2 * 4
    (rows,) = packs_of_rows(tokens, actions, budget=1000)
    # Rows of 44, 44, 43, 45, 45 and 44 tokens.
    assert rows.computed == 6 * 45 and rows.padding == 5


def test_a_trajectory_alone_needs_no_mask_however_long_it_is() -> None:
    long_T, branch_T = torch.arange(5000), torch.tensor([0, 1, 7, 7])
    last_only = [torch.arange(len(t)) == len(t) - 1 for t in (long_T, branch_T)]
    alone, branch = packs_of_trees([long_T, branch_T], last_only, budget=100)
    assert (alone.computed, branch.computed) == (4999, 3)
    assert alone.mask_NN is None and branch.mask_NN is None
    (together,) = packs_of_trees([long_T[:10], branch_T], [last_only[0][-10:], last_only[1]], budget=100)
    assert together.mask_NN is not None and together.computed == 9 + 1


@pytest.mark.parametrize("pack", [packs_of_rows, packs_of_trees])
def test_nothing_makes_no_packs(pack) -> None:
    assert pack([], [], budget=10) == []
