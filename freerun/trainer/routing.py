"""The routing of trajectories, as packs compute it: where the tokens of a micro-batch go, and where they went.

Shapes: T positions of a trajectory, N tokens of a pack, L routers, k experts that a token goes to.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from freerun.models.routing import Routers
from freerun.trainer.batch import Row
from freerun.trainer.packing import Pack


def alike(rows: Sequence[Row]) -> list[Tensor] | None:
    """Numbers [T] of each row that are equal where token and experts are; None if no routing is replayed."""
    routings = [row.routing_LTk for row in rows if row.routing_LTk is not None]
    if not routings:
        return None
    steps = [torch.cat([row.tokens_T[:, None], r.transpose(0, 1).flatten(1)], 1) for row, r in zip(rows, routings, strict=True)]
    number = torch.unique(torch.cat(steps), dim=0, return_inverse=True)[1]
    return list(number.split([len(step) for step in steps]))


def replayed(routers: Routers | None, pack: Pack, rows: Sequence[Row], device: torch.device) -> AbstractContextManager[None]:
    """Inside, the tokens of `pack` go where its rows say, if they say so."""
    routings = [row.routing_LTk for row in (rows[i] for i in pack.members) if row.routing_LTk is not None]
    if routers is None or not routings:
        return nullcontext()
    num_routers, _, num_active = routings[0].shape
    # Padding goes to the first expert, as good as any.
    expert_LNk = torch.zeros(num_routers, pack.computed, num_active, dtype=torch.long)
    for path_T, routing_LTk in zip(pack.paths, routings, strict=True):
        expert_LNk[:, path_T] = routing_LTk[:, : len(path_T)].long()
    return routers.replaying(expert_LNk.to(device))


def give_routing(rows: Sequence[Row], pack: Pack, expert_Nk: Iterable[Tensor]) -> None:
    """Let each row of `pack` have the experts to which its tokens went, one entry per router."""
    expert_LNk = torch.stack(list(expert_Nk)).cpu().to(torch.int16)
    for index, path_T in zip(pack.members, pack.paths, strict=True):
        missing = len(rows[index].tokens_T) - len(path_T)
        rows[index].routing_LTk = torch.nn.functional.pad(expert_LNk[:, path_T], (0, 0, 0, missing), value=-1)
