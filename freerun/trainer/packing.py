"""Packing trajectories into micro-batches by token budget.

*Tree*: trajectories that share a prefix (siblings share their prompt, groups may share a few-shot prefix) become one flat row
in which a shared token stands once. A token's position is its depth and it attends to its ancestors and itself, so it computes
exactly what it would compute alone. When trajectories are sorted like the words of a dictionary, the longest prefix that one of
them shares with *any* earlier one is the one it shares with its predecessor. So the tree needs no tree: each adds its own tail.

*Rows*: one right-padded row per trajectory, for models that cannot take such an attention mask.

Either way the last action token is not computed, because nothing is predicted from it.

Shapes: R rows, L positions of a row, N tokens of a tree, U positions that predict, M action tokens, B trajectories, T action
tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A micro-batch, ready for the network.

    members        indices of its trajectories, in the order of the batch rows B
    tokens_RL      int64 inputs; a tree has R = 1
    positions_RL   depth of each token, or None: 0, 1, 2, ... in each row
    mask_NN        True where the token of the row may attend to that of the column, or None: causal
    predicts_U     flat indices into tokens_RL of the positions that predict, ascending
    row_M          index into predicts_U for each action token, ascending
    token_M        the action tokens
    slot_M         flat index of each action token in [B, T]
    shape_BT       (B, T)
    paths          flat index into tokens_RL of every input token of each trajectory
    padding        how many of the tokens are padding
    """

    members: tuple[int, ...]
    tokens_RL: Tensor
    positions_RL: Tensor | None
    mask_NN: Tensor | None
    predicts_U: Tensor
    row_M: Tensor
    token_M: Tensor
    slot_M: Tensor
    shape_BT: tuple[int, int]
    paths: tuple[Tensor, ...]
    padding: int

    @property
    def computed(self) -> int:
        """Tokens that go through the network, padding included."""
        return self.tokens_RL.numel()


def allocate(lengths: Sequence[int], capacity: int, *, minimum: int = 1, padded: bool = False) -> list[list[int]]:
    """Indices of sequences per micro-batch: longest first, each into the micro-batch that has the fewest sequences among those
    with room, a new one if there is none or fewer than `minimum` exist (AReaL, arXiv 2505.24298, algorithm 1).

    With `padded` a micro-batch costs rows times its longest row. A sequence longer than `capacity` is a micro-batch of its own.
    """
    bins: list[list[int]] = []
    used: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        costs = [lengths[b[0]] * (len(b) + 1) if padded else u + lengths[index] for b, u in zip(bins, used, strict=True)]
        room = [i for i, cost in enumerate(costs) if cost <= capacity]
        if len(bins) < minimum or not room:
            bins.append([index])
            used.append(lengths[index])
        else:
            choice = min(room, key=lambda i: (len(bins[i]), i))
            bins[choice].append(index)
            used[choice] = costs[choice]
    return bins


def packs_of_rows(tokens: Sequence[Tensor], actions: Sequence[Tensor], *, budget: int) -> list[Pack]:
    """Right-padded packs of at most `budget` tokens, padding included."""
    inputs = _inputs(tokens, actions) if tokens else []
    return [
        _rows(tuple(members), tokens, actions, inputs) for members in allocate([len(i) for i in inputs], budget, padded=True)
    ]


def packs_of_trees(
    tokens: Sequence[Tensor],
    actions: Sequence[Tensor],
    *,
    budget: int,
    balance: bool = True,
    alike: Sequence[Tensor] | None = None,
) -> list[Pack]:
    """Tree packs of at most `budget` unique tokens.

    With `balance` the packs are about equally large; without, every pack but the last is as full as it can be. A prefix is
    shared as far as its tokens agree, or the numbers of `alike` in their place, where more than the token decides what is
    computed.
    """
    inputs = _inputs(tokens, actions) if tokens else []
    same = inputs if alike is None else _inputs(alike, actions)
    # Big-endian bytes compare like the numbers they hold, in one call and without a Python object per token.
    keys = [i.numpy().astype(">u4").tobytes() for i in same]
    order = sorted(range(len(inputs)), key=keys.__getitem__)
    shared = [0, *(_common(same[a], same[b]) for a, b in pairwise(order))][: len(order)]
    lengths = [len(inputs[i]) for i in order]
    cuts = _cut(lengths, shared, budget)
    if balance:
        cuts = _balanced(lengths, shared, budget, cuts)
    return [
        _tree(tuple(order[first:last]), tokens, actions, inputs, [0, *shared[first + 1 : last]])
        for first, last in pairwise([*cuts, len(order)])
    ]


def _inputs(tokens: Sequence[Tensor], actions: Sequence[Tensor]) -> list[Tensor]:
    """Of each trajectory everything before its last action token."""
    action_BT = torch.nn.utils.rnn.pad_sequence(list(actions), batch_first=True)
    last_B = (action_BT * torch.arange(action_BT.shape[1])).amax(-1)
    return [tokens_T[:last] for tokens_T, last in zip(tokens, last_B.tolist(), strict=True)]


def _common(left_T: Tensor, right_T: Tensor) -> int:
    num = min(len(left_T), len(right_T))
    differs = (left_T[:num] != right_T[:num]).nonzero()
    return int(differs[0]) if len(differs) else num


def _cut(lengths: Sequence[int], shared: Sequence[int], budget: int) -> list[int]:
    """Where packs begin if each takes as many trajectories as fit."""
    cuts, used = [], budget + 1
    for index, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if used + length - common > budget:
            cuts.append(index)
            used = length
        else:
            used += length - common
    return cuts


def _balanced(lengths: Sequence[int], shared: Sequence[int], budget: int, cuts: list[int]) -> list[int]:
    """The cuts of the smallest budget that needs no more packs."""
    low, high = max(lengths, default=1) - 1, budget
    while high - low > 1:
        middle = (low + high) // 2
        candidate = _cut(lengths, shared, middle)
        if len(candidate) <= len(cuts):
            cuts, high = candidate, middle
        else:
            low = middle
    return cuts


def _tree(
    members: tuple[int, ...],
    tokens: Sequence[Tensor],
    actions: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shared: Sequence[int],
) -> Pack:
    num, path_T = 0, torch.empty(0, dtype=torch.long)
    tails, depths, paths, spans = [], [], [], []
    for index, common in zip(members, shared, strict=True):
        length = len(inputs[index])
        tails.append(inputs[index][common:])
        depths.append(torch.arange(common, length))
        path_T = torch.cat([path_T[:common], torch.arange(num, num + length - common)])
        paths.append(path_T)
        spans.append((num, common))
        num += length - common
    where = [path[actions[i].nonzero().squeeze(-1) - 1] for path, i in zip(paths, members, strict=True)]
    tokens_RL = torch.cat(tails)[None]
    if num == max(len(path) for path in paths):
        # No branches, as in a pack of one long trajectory: plain causal attention needs no mask of N x N.
        return _pack(members, tokens, actions, where, paths, tokens_RL=tokens_RL)
    mask_NN = torch.zeros(num, num, dtype=torch.bool)
    for path_T, (first, common) in zip(paths, spans, strict=True):
        length = len(path_T)
        ancestors = torch.ones(length - common, length, dtype=torch.bool).tril(common)
        mask_NN[first : first + length - common, path_T] = ancestors
    positions_RL = torch.cat(depths)[None]
    return _pack(members, tokens, actions, where, paths, tokens_RL=tokens_RL, positions_RL=positions_RL, mask_NN=mask_NN)


def _rows(members: tuple[int, ...], tokens: Sequence[Tensor], actions: Sequence[Tensor], inputs: Sequence[Tensor]) -> Pack:
    tokens_RL = torch.nn.utils.rnn.pad_sequence([inputs[i] for i in members], batch_first=True)
    action_RL = torch.nn.utils.rnn.pad_sequence([actions[i][1 : len(inputs[i]) + 1] for i in members], batch_first=True)
    where = action_RL.flatten().nonzero().squeeze(-1).split(action_RL.sum(-1).tolist())
    flat_RL = torch.arange(tokens_RL.numel()).view(tokens_RL.shape)
    paths = [flat_RL[row, : len(inputs[i])] for row, i in enumerate(members)]
    padding = tokens_RL.numel() - sum(len(inputs[i]) for i in members)
    return _pack(members, tokens, actions, where, paths, tokens_RL=tokens_RL, padding=padding)


def _pack(
    members: tuple[int, ...],
    tokens: Sequence[Tensor],
    actions: Sequence[Tensor],
    where: Sequence[Tensor],
    paths: Sequence[Tensor],
    *,
    tokens_RL: Tensor,
    positions_RL: Tensor | None = None,
    mask_NN: Tensor | None = None,
    padding: int = 0,
) -> Pack:
    """The pack with these inputs; `where` holds the flat position that predicts each action token, by member."""
    counts = [len(w) for w in where]
    longest = max(counts)
    slot_M = torch.cat([b * longest + torch.arange(n) for b, n in enumerate(counts)])
    predicts_U, row_M = torch.unique(torch.cat(list(where)), return_inverse=True)
    order = row_M.argsort(stable=True)
    token_M = torch.cat([tokens[i][actions[i]] for i in members])
    return Pack(
        members=members,
        tokens_RL=tokens_RL,
        positions_RL=positions_RL,
        mask_NN=mask_NN,
        predicts_U=predicts_U,
        row_M=row_M[order],
        token_M=token_M[order],
        slot_M=slot_M[order],
        shape_BT=(len(members), longest),
        paths=tuple(paths),
        padding=padding,
    )
