"""From groups to what a micro-batch is cut from: checks at consumption, credit, columns, and what the data alone says.

Shapes: G trajectories of a group, T positions of a trajectory, A its action tokens; B and T of a `Batch` as in `types`; L
routers of a mixture of experts, k experts that a token goes to.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, State
from freerun.errors import DataError, StaleItem
from freerun.ops.ratios import lag_counts
from freerun.types import COLUMNS, Batch, Group, Histogram, Max, Mean, Metric, Source, Stop, Sum, Trajectory, merge_all

PRODUCED = frozenset(COLUMNS) - {"returns", "mask_selected"}
"""Columns that the trainer can give an algorithm; values only with a critic, and what only `prepare` can make not at all."""
CPU = torch.device("cpu")
VERSIONED = {Source.ROLLOUT, Source.RECALLED, Source.REPLAY}
"""Sources whose tokens a version of this run produced."""


@dataclass(slots=True, kw_only=True)
class Row:
    """A trajectory that has action tokens. `per_token` [A] and `per_row` are its part of the batch columns. `routing_LTk` is
    where its tokens are to go, if that is replayed; only what stands before the last action token is read."""

    tokens_T: Tensor
    action_T: Tensor
    per_token: dict[str, Tensor]
    per_row: dict[str, float | int]
    expert: bool = False
    routing_LTk: Tensor | None = None


def check_group(group: Group, *, version: int, max_lag: int | None, max_age: int | None = None) -> None:
    """What admission and the actors promise, checked where it matters: right before training.

    Raises `DataError` for a malformed group and `StaleItem` for a token that is older than `max_lag` allows (`max_age`, for a
    replayed one), or newer than the trainer, unless the update that made its version was lost in a crash.
    """
    demonstrated = group.source is Source.EXPERT and not group.rewards
    if len(group.trajectories) != len(group.rewards) and not demonstrated:
        raise _malformed(group, f"{len(group.trajectories)} trajectories, {len(group.rewards)} rewards", "one reward each")
    if not all(math.isfinite(reward.value) for reward in group.rewards):
        raise _malformed(group, f"rewards {[reward.value for reward in group.rewards]}", "finite rewards")
    limit = max_age if group.source is Source.REPLAY else max_lag
    _check_tensors(group)
    if group.source not in VERSIONED:
        return
    for index, (num, oldest, newest) in enumerate(_spans(group.trajectories)):
        early = newest > version and group.source is not Source.RECALLED
        if num and (early or oldest < 0 or (limit is not None and version - oldest > limit)):
            raise StaleItem(
                f"item {group.item} (prompt '{group.prompt.uid}'), sample {index}, has tokens of the wrong age",
                given=f"tokens of versions {oldest} to {newest}, trainer at version {version}",
                expected="no token newer than the trainer" + ("" if limit is None else f", none older than lag {limit}"),
                todo="report this: admission makes it impossible, unless trainer.max_lag is below the lag bound of the run",
            )


def _spans(trajectories: Sequence[Trajectory]) -> list[tuple[int, int, int]]:
    """Of each trajectory: its action tokens, and the oldest and the newest version that made one; for all at once, because a
    handful of small tensors for each costs more than the step of a small model."""
    if not trajectories:
        return []
    action_BT = _padded([t.action_T for t in trajectories], CPU)
    version_BT = _padded([t.version_T for t in trajectories], CPU)
    ends = torch.iinfo(version_BT.dtype)
    oldest_B = torch.where(action_BT, version_BT, ends.max).amin(-1)
    newest_B = torch.where(action_BT, version_BT, ends.min).amax(-1)
    return list(zip(action_BT.sum(-1).tolist(), oldest_B.tolist(), newest_B.tolist(), strict=True))


def rows_of(group: Group, index: int, algorithm: Algorithm, state: State, *, version: int) -> tuple[list[Row], State]:
    """Credit the group and list its trajectories that have action tokens. Raises `DataError` if the credit's shape is wrong."""
    expert = group.source is Source.EXPERT
    if expert:
        # Demonstrations have no siblings to be compared with: each is worth imitating.
        advantage_G = torch.ones(len(group.trajectories))
    else:
        advantage_G, state = algorithm.credit(group, state)
    if advantage_G.shape[:1] != (len(group.trajectories),) or advantage_G.dim() > 2:
        raise DataError(
            f"the credit of algorithm '{algorithm.name}' has the wrong shape",
            given=tuple(advantage_G.shape),
            expected=f"[{len(group.trajectories)}] or [{len(group.trajectories)}, T], one per trajectory, or per action token",
            todo=f"correct the credit function of '{algorithm.name}'",
        )
    columns_G = _token_columns(group, algorithm, version)
    rows, total = [], sum(num for num, _ in columns_G)
    found = zip(group.trajectories, advantage_G.float(), columns_G, strict=True)
    for i, (trajectory, advantage, (num, columns)) in enumerate(found):
        if not num:
            continue
        reward = group.rewards[i].value if group.rewards else math.nan
        row = Row(
            tokens_T=trajectory.tokens_T.long(),
            action_T=trajectory.action_T,
            per_token={"advantage": advantage.expand(num) if advantage.dim() == 0 else advantage[:num], **columns},
            per_row={"group": index, "group_tokens": total, **({"reward": reward} if group.rewards or expert else {})},
            expert=expert,
            routing_LTk=_routing(group, i, algorithm) if algorithm.routing == "rollout" else None,
        )
        rows.append(row)
    return rows, state


def _routing(group: Group, index: int, algorithm: Algorithm) -> Tensor:
    routing_LTk = group.trajectories[index].routing_LTk
    if routing_LTk is None:
        raise DataError(
            f"algorithm '{algorithm.name}' replays the generator's routing, which sample {index} of item {group.item} "
            f"(prompt '{group.prompt.uid}') does not have",
            given=f"an item of source {group.source} without routing_LTk",
            expected="a mixture of experts, and trajectories of generators with generator.routing",
            todo="--algorithm.routing update or free, for data that no generator of this run made",
        )
    return routing_LTk


def _token_columns(group: Group, algorithm: Algorithm, version: int) -> list[tuple[int, dict[str, Tensor]]]:
    """Of each trajectory, how many action tokens it has, and what is known of each. A column that nobody knows is left out, so
    that reading it is an error; but in a batch whose terms keep demonstrations apart, theirs hold a place that no term looks
    at."""
    action_N = torch.cat([t.action_T for t in group.trajectories])
    nums = [num for num, _, _ in _spans(group.trajectories)]
    version_A = torch.cat([t.version_T for t in group.trajectories])[action_N].long()
    logp_A = torch.cat([t.logp_T for t in group.trajectories])[action_N].float()
    placed = group.source is Source.EXPERT and "mask_rollout" in algorithm.columns
    whole = {"logp_behaviour": logp_A}
    if group.source in VERSIONED:
        whole |= {"version": version_A, "lag": version - version_A}
    elif placed:
        whole |= {"version": version_A, "lag": torch.zeros_like(version_A)}
    known = placed or not bool(logp_A.isnan().any())
    found = []
    for num, *values in zip(nums, *(column_A.split(nums) for column_A in whole.values()), strict=True):
        columns = dict(zip(whole, values, strict=True))
        if not known and bool(columns["logp_behaviour"].isnan().any()):
            del columns["logp_behaviour"]
        found.append((num, columns))
    return found


def split_silent(rows: Sequence[Row], algorithm: Algorithm) -> tuple[list[Row], list[Row]]:
    """Rows to compute, and rows whose losses the algorithm declares to be 0, which only count."""
    silent = [algorithm.advantage_gates and not bool(row.per_token["advantage"].any()) for row in rows]
    return [r for r, s in zip(rows, silent, strict=True) if not s], [r for r, s in zip(rows, silent, strict=True) if s]


def batch_of(rows: Sequence[Row], device: torch.device) -> Batch:
    """The columns that all `rows` have, padded with zeros to the longest. No rows have masks of no elements, and what counts
    them."""
    if not rows:
        none_BT = torch.zeros(0, 0, dtype=torch.bool, device=device)
        nothing = {name: none_BT for name in COLUMNS if name.startswith("mask")}
        return Batch({**nothing, "group_tokens": torch.zeros(0, device=device)})
    masks = ("mask", "mask_rollout", "mask_expert")
    num_B1 = torch.tensor([[len(row.per_token["advantage"])] for row in rows])
    mask_BT = (torch.arange(int(num_B1.max())) < num_B1).to(device)
    expert_B1 = torch.tensor([[row.expert] for row in rows], device=device)
    columns = dict(zip(masks, (mask_BT, mask_BT & ~expert_B1, mask_BT & expert_B1), strict=True))
    for name in rows[0].per_token:
        if all(name in row.per_token for row in rows):
            columns[name] = _padded([row.per_token[name] for row in rows], device)
    for name in rows[0].per_row:
        if all(name in row.per_row for row in rows):
            columns[name] = torch.tensor([row.per_row[name] for row in rows], device=device)
    return Batch(columns)


def data_metrics(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, Metric]:
    """What rewards, responses and lags of a part of the step add up to."""
    demonstrated = [group for group in groups if group.source is Source.EXPERT]
    trained = sum(len(row.per_token["advantage"]) for row in rows)
    groups = [group for group in groups if group.source is not Source.EXPERT]
    trajectories = [t for group in groups for t in group.trajectories]
    spans = _spans(trajectories)
    rewards = [[reward.value for reward in group.rewards] for group in groups]
    flat = [reward for group in rewards for reward in group]
    lengths = [num for num, _, _ in spans]
    versions = [newest - oldest + 1 for num, oldest, newest in spans if num]
    metrics: dict[str, Metric] = {
        **{f"items/used/{source}": Sum(n) for source, n in Counter(g.source for g in (*groups, *demonstrated)).items()},
        "reward/mean": Mean(sum(flat), len(flat)),
        "reward/std": Mean(sum(pstdev(group) for group in rewards), len(rewards)),
        "reward/flat_groups": Mean(sum(max(group) == min(group) for group in rewards), len(rewards)),
        "response/length_mean": Mean(sum(lengths), len(lengths)),
        "response/length_max": Max(max(lengths, default=0)),
        "response/versions": Mean(sum(versions), len(versions)),
        "tokens/trained": Sum(trained),
        **{f"response/stop/{stop}": Mean(sum(t.stop == stop for t in trajectories), len(trajectories)) for stop in Stop},
    }
    parts: list[Mapping[str, Metric]] = [
        {f"reward/{name}": Mean(value, 1) for name, value in reward.parts.items()}
        for group in groups
        for reward in group.rewards
    ]
    return merge_all(parts) | metrics | _lag_metrics(rows)


def advantage_metrics(rows: Sequence[Row]) -> dict[str, Metric]:
    """How much signal these rows carry; demonstrations aside, whose credit compares them with nothing."""
    advantages = [row.per_token["advantage"] for row in rows if not row.expert]
    if not advantages:
        return {}
    advantage_N = torch.cat(advantages)
    return {
        "advantage/mean": Mean(float(advantage_N.sum()), len(advantage_N)),
        "advantage/abs_mean": Mean(float(advantage_N.abs().sum()), len(advantage_N)),
    }


def _lag_metrics(rows: Sequence[Row]) -> dict[str, Metric]:
    lags = [row.per_token["lag"] for row in rows if not row.expert and "lag" in row.per_token]
    if not lags:
        return {}
    lag_N = torch.cat(lags)
    return {
        "lag/mean": Mean(float(lag_N.sum()), len(lag_N)),
        "lag/max": Max(float(lag_N.max())),
        "lag/tokens": Histogram(lag_counts(lag_N)),
    }


def _check_tensors(group: Group) -> None:
    """Raises `DataError` naming the first trajectory whose tensors cannot be what an actor recorded."""
    for index, trajectory in enumerate(group.trajectories):
        shape = trajectory.tokens_T.shape
        columns = {"action_T": trajectory.action_T, "logp_T": trajectory.logp_T, "version_T": trajectory.version_T}
        wrong = {name: tuple(column.shape) for name, column in columns.items() if column.shape != shape}
        if trajectory.routing_LTk is not None and trajectory.routing_LTk.shape[1:2] != shape:
            wrong["routing_LTk"] = tuple(trajectory.routing_LTk.shape)
        if wrong or len(shape) != 1:
            given = wrong or {"tokens_T": tuple(shape)}
            raise _malformed(group, f"sample {index}: {given}", "one dimension, and the shape of tokens_T for all")
    if not group.trajectories:
        return
    # Whole groups first, because asking each small tensor costs more than the step of a small model.
    if bool(torch.cat([t.action_T[:1] for t in group.trajectories]).any()):
        index = next(i for i, t in enumerate(group.trajectories) if bool(t.action_T[:1].any()))
        raise _malformed(group, f"sample {index}: the first token is an action", "at least one token before the first action")
    if bool(torch.isfinite(torch.cat([t.logp_T for t in group.trajectories])).all()):
        return
    for index, trajectory in enumerate(group.trajectories):
        known = group.source in VERSIONED or not trajectory.logp_T.isnan().all()
        if known and not torch.isfinite(trajectory.logp_T).all():
            raise _malformed(group, f"sample {index}: a behaviour log-prob is not finite", "finite log-probs")


def _malformed(group: Group, given: str, expected: str) -> DataError:
    return DataError(
        f"item {group.item} (prompt '{group.prompt.uid}') cannot be trained on",
        given=given,
        expected=expected,
        todo="correct the actor or rewarder that made it",
    )


def _padded(columns_A: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(columns_A), batch_first=True).to(device)
