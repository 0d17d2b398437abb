"""From groups to what a micro-batch is cut from: checks at consumption, credit, columns, and what the data alone says.

Shapes: G trajectories of a group, T positions of a trajectory, A its action tokens; B and T of a `Batch` as in `types`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm, State
from freerun.errors import DataError, StaleItem
from freerun.ops.ratios import lag_counts
from freerun.types import Batch, Group, Histogram, Max, Mean, Metric, Stop, Sum, Trajectory, merge_all

PRODUCED = frozenset(
    {"mask", "logp_behaviour", "logp_proximal", "logp_reference", "version", "lag", "advantage", "reward", "group"}
)
"""Columns that the trainer can give an algorithm."""


@dataclass(slots=True, kw_only=True)
class Row:
    """A trajectory that has action tokens. `per_token` [A] and `per_row` are its part of the batch columns."""

    tokens_T: Tensor
    action_T: Tensor
    per_token: dict[str, Tensor]
    per_row: dict[str, float | int]


def check_group(group: Group, *, version: int, max_lag: int | None) -> None:
    """What admission and the actors promise, checked where it matters: right before training.

    Raises `DataError` for a malformed group and `StaleItem` for a token that is older than `max_lag` allows, or newer than the
    trainer.
    """
    if len(group.trajectories) != len(group.rewards):
        raise _malformed(group, f"{len(group.trajectories)} trajectories, {len(group.rewards)} rewards", "one reward each")
    if not all(math.isfinite(reward.value) for reward in group.rewards):
        raise _malformed(group, f"rewards {[reward.value for reward in group.rewards]}", "finite rewards")
    for index, trajectory in enumerate(group.trajectories):
        _check_trajectory(group, index, trajectory)
        version_A = trajectory.version_T[trajectory.action_T]
        if not len(version_A):
            continue
        oldest, newest = int(version_A.min()), int(version_A.max())
        if newest > version or oldest < 0 or (max_lag is not None and version - oldest > max_lag):
            raise StaleItem(
                f"item {group.item} (prompt '{group.prompt.uid}'), sample {index}, has tokens of the wrong age",
                given=f"tokens of versions {oldest} to {newest}, trainer at version {version}",
                expected="no token newer than the trainer" + ("" if max_lag is None else f", none older than lag {max_lag}"),
                todo="report this: admission makes it impossible, unless trainer.max_lag is below the lag bound of the run",
            )


def rows_of(group: Group, index: int, algorithm: Algorithm, state: State, *, version: int) -> tuple[list[Row], State]:
    """Credit the group and list its trajectories that have action tokens. Raises `DataError` if the credit's shape is wrong."""
    advantage_G, state = algorithm.credit(group, state)
    if advantage_G.shape[:1] != (len(group.trajectories),) or advantage_G.dim() > 2:
        raise DataError(
            f"the credit of algorithm '{algorithm.name}' has the wrong shape",
            given=tuple(advantage_G.shape),
            expected=f"[{len(group.trajectories)}] or [{len(group.trajectories)}, T], one per trajectory, or per action token",
            todo=f"correct the credit function of '{algorithm.name}'",
        )
    rows = []
    for trajectory, reward, advantage in zip(group.trajectories, group.rewards, advantage_G.float(), strict=True):
        action_T = trajectory.action_T
        num = trajectory.num_actions
        if num:
            version_A = trajectory.version_T[action_T].long()
            advantage_A = advantage.expand(num) if advantage.dim() == 0 else advantage[:num]
            per_token = {
                "logp_behaviour": trajectory.logp_T[action_T].float(),
                "version": version_A,
                "lag": version - version_A,
                "advantage": advantage_A,
            }
            per_row = {"reward": reward.value, "group": index}
            rows.append(Row(tokens_T=trajectory.tokens_T.long(), action_T=action_T, per_token=per_token, per_row=per_row))
    return rows, state


def split_silent(rows: Sequence[Row], algorithm: Algorithm) -> tuple[list[Row], list[Row]]:
    """Rows to compute, and rows whose losses the algorithm declares to be 0, which only count."""
    silent = [algorithm.advantage_gates and not bool(row.per_token["advantage"].any()) for row in rows]
    return [r for r, s in zip(rows, silent, strict=True) if not s], [r for r, s in zip(rows, silent, strict=True) if s]


def demonstration_rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Row]:
    """Rows for supervised training from pairs of prompt tokens and response tokens."""
    rows = []
    for prompt, response in pairs:
        action_T = torch.tensor([False] * len(prompt) + [True] * len(response))
        per_token = {"advantage": torch.ones(len(response))}
        rows.append(Row(tokens_T=torch.tensor([*prompt, *response]), action_T=action_T, per_token=per_token, per_row={}))
    return rows


def batch_of(rows: Sequence[Row], device: torch.device) -> Batch:
    """The columns of `rows`, padded with zeros to the longest. No rows have a mask of no elements, and nothing else."""
    if not rows:
        return Batch({"mask": torch.zeros(0, 0, dtype=torch.bool, device=device)})
    columns = {"mask": _padded([torch.ones(int(row.action_T.sum()), dtype=torch.bool) for row in rows], device)}
    for name in rows[0].per_token:
        columns[name] = _padded([row.per_token[name] for row in rows], device)
    for name in rows[0].per_row:
        columns[name] = torch.tensor([row.per_row[name] for row in rows], device=device)
    return Batch(columns)


def data_metrics(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, Metric]:
    """What rewards, responses, advantages and lags of a part of the step add up to."""
    trajectories = [t for group in groups for t in group.trajectories]
    rewards = [[reward.value for reward in group.rewards] for group in groups]
    flat = [reward for group in rewards for reward in group]
    lengths = [t.num_actions for t in trajectories]
    versions = [t.newest_version - t.oldest_version + 1 for t, n in zip(trajectories, lengths, strict=True) if n]
    metrics: dict[str, Metric] = {
        "reward/mean": Mean(sum(flat), len(flat)),
        "reward/std": Mean(sum(pstdev(group) for group in rewards), len(rewards)),
        "reward/flat_groups": Mean(sum(max(group) == min(group) for group in rewards), len(rewards)),
        "response/length_mean": Mean(sum(lengths), len(lengths)),
        "response/length_max": Max(max(lengths, default=0)),
        "response/versions": Mean(sum(versions), len(versions)),
        "tokens/trained": Sum(sum(lengths)),
        **{f"response/stop/{stop}": Mean(sum(t.stop == stop for t in trajectories), len(trajectories)) for stop in Stop},
    }
    parts: list[Mapping[str, Metric]] = [
        {f"reward/{name}": Mean(value, 1) for name, value in reward.parts.items()}
        for group in groups
        for reward in group.rewards
    ]
    return merge_all(parts) | metrics | _token_metrics(rows)


def _token_metrics(rows: Sequence[Row]) -> dict[str, Metric]:
    if not rows:
        return {}
    lag_N = torch.cat([row.per_token["lag"] for row in rows])
    advantage_N = torch.cat([row.per_token["advantage"] for row in rows])
    return {
        "advantage/mean": Mean(float(advantage_N.sum()), len(advantage_N)),
        "advantage/abs_mean": Mean(float(advantage_N.abs().sum()), len(advantage_N)),
        "lag/mean": Mean(float(lag_N.sum()), len(lag_N)),
        "lag/max": Max(float(lag_N.max())),
        "lag/tokens": Histogram(lag_counts(lag_N)),
    }


def _check_trajectory(group: Group, index: int, trajectory: Trajectory) -> None:
    columns: Mapping[str, Tensor] = {
        "action_T": trajectory.action_T,
        "logp_T": trajectory.logp_T,
        "version_T": trajectory.version_T,
    }
    shape = trajectory.tokens_T.shape
    wrong = {name: tuple(column.shape) for name, column in columns.items() if column.shape != shape}
    if wrong:
        raise _malformed(group, f"sample {index}: {wrong}", f"the shape of tokens_T, {tuple(shape)}")
    if len(shape) != 1 or (len(trajectory.action_T) and bool(trajectory.action_T[0])):
        raise _malformed(group, f"sample {index}: the first token is an action", "at least one token before the first action")
    if not torch.isfinite(trajectory.logp_T).all():
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
