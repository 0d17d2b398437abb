"""Groups and chunks as bytes, for the journal and for checkpoints: a line of JSON, then the columns, little-endian.

Nothing that runs code when read. A group comes back bit for bit; its prompt is not in it, because the run draws prompts in an
order that it can repeat.

Shapes: T positions of a trajectory, or steps of a chunk; N environments; L routers, k experts that a token goes to.
"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from freerun.errors import CheckpointError
from freerun.transitions import Chunk
from freerun.types import CachePolicy, Group, Prompt, RewardResult, Source, Stop, Trajectory

_COLUMNS = (("tokens_T", torch.int32), ("action_T", torch.uint8), ("logp_T", torch.float32), ("version_T", torch.int32))


def encode_group(group: Group) -> bytes:
    """A group as bytes, without its prompt. Token ids fit into 32 bits."""
    head = {
        "source": group.source,
        "trajectories": [
            {
                "length": len(t.tokens_T),
                "text": t.text,
                "stop": t.stop,
                "cache": t.cache_policy,
                "routing": None if t.routing_LTk is None else list(t.routing_LTk.shape),
            }
            for t in group.trajectories
        ],
        "rewards": [{"value": r.value, "parts": dict(r.parts), "info": dict(r.info)} for r in group.rewards],
    }
    body = b"".join(column for t in group.trajectories for column in _columns(t))
    return json.dumps(head).encode() + b"\n" + body


def decode_group(data: bytes, item: int, prompt: Prompt, *, source: Source | None = None) -> Group:
    """The inverse of `encode_group`, for the item `item` made from `prompt`; `source` in place of the recorded one, if
    given. Raises `CheckpointError` for anything else."""
    try:
        return _decoded(data, item, prompt, source)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the record of item {item} is not one of a group",
            given=f"{type(error).__name__}: {error}",
            expected="what a run of this version wrote",
            todo="resume with the version of the run; without its journal, finished groups are made again",
        ) from error


def _decoded(data: bytes, item: int, prompt: Prompt, source: Source | None) -> Group:
    line, _, body = data.partition(b"\n")
    head, start, trajectories = json.loads(line), 0, []
    for saved in head["trajectories"]:
        columns: dict[str, Tensor] = {}
        shapes = {name: (dtype, [saved["length"]]) for name, dtype in _COLUMNS}
        if saved["routing"] is not None:
            shapes["routing_LTk"] = torch.int16, saved["routing"]
        for name, (dtype, shape) in shapes.items():
            size = math.prod(shape) * dtype.itemsize
            flat = torch.frombuffer(bytearray(body[start : start + size]), dtype=dtype) if size else torch.empty(0)
            columns[name] = flat.view(shape)
            start += size
        trajectories.append(_trajectory(saved, columns))
    return Group(
        item=item,
        prompt=prompt,
        trajectories=tuple(trajectories),
        rewards=tuple(RewardResult(r["value"], r["parts"], r["info"]) for r in head["rewards"]),
        source=source or Source(head["source"]),
    )


def encode_chunk(chunk: Chunk) -> bytes:
    """A chunk as bytes, without the episodes and failures that it reported when it arrived."""
    columns = {name: column.contiguous() for name, column in chunk.columns.items()}
    head = {
        "item": chunk.item,
        "actor": chunk.actor,
        "oldest": chunk.oldest_version,
        "columns": {name: [str(c.dtype).removeprefix("torch."), list(c.shape)] for name, c in columns.items()},
    }
    body = b"".join(column.view(torch.uint8).numpy().tobytes() for column in map(_flat, columns.values()))
    return json.dumps(head).encode() + b"\n" + body


def decode_chunk(data: bytes) -> Chunk:
    """The inverse of `encode_chunk`. Raises `CheckpointError` for anything else."""
    try:
        return _decoded_chunk(data)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            "a record of a checkpoint is not one of a chunk",
            given=f"{type(error).__name__}: {error}",
            expected="what a run of this version wrote",
            todo="resume with the version of the run",
        ) from error


def _decoded_chunk(data: bytes) -> Chunk:
    line, _, body = data.partition(b"\n")
    head, start, columns = json.loads(line), 0, {}
    for name, (dtype_name, shape) in head["columns"].items():
        dtype = _DTYPES[dtype_name]
        size = dtype.itemsize * torch.Size(shape).numel()
        columns[name] = torch.frombuffer(bytearray(body[start : start + size]), dtype=dtype).view(shape)
        start += size
    return Chunk(item=head["item"], actor=head["actor"], columns=columns, oldest_version=head["oldest"])


def _flat(column: Tensor) -> Tensor:
    return column.reshape(-1)


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
}


def _trajectory(saved: dict[str, Any], columns: dict[str, Tensor]) -> Trajectory:
    return Trajectory(
        tokens_T=columns["tokens_T"].long(),
        action_T=columns["action_T"].bool(),
        logp_T=columns["logp_T"],
        version_T=columns["version_T"],
        text=saved["text"],
        stop=Stop(saved["stop"]) if saved["stop"] else None,
        cache_policy=CachePolicy(saved["cache"]),
        routing_LTk=columns.get("routing_LTk"),
    )


def _columns(trajectory: Trajectory) -> list[bytes]:
    """In the order of `_COLUMNS`, in its types, and routing last. Through NumPy, which is twice as fast on short columns."""
    columns = (trajectory.tokens_T, trajectory.action_T, trajectory.logp_T, trajectory.version_T)
    typed = [column.numpy().astype(dtype).tobytes() for column, dtype in zip(columns, ("<i4", "u1", "<f4", "<i4"), strict=True)]
    return typed if trajectory.routing_LTk is None else [*typed, trajectory.routing_LTk.numpy().astype("<i2").tobytes()]
