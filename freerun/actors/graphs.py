"""CUDA graphs of what a decode step consists of: launched as a whole, because launching its kernels one by one takes longer
than they run. A graph has fixed shapes and addresses, so there is one for each number of rows, rounded up, and inputs are
copied to where it reads them.

Shapes: N tokens of one pass, R rows of logits, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freerun.actors.slots import Plan
from freerun.ops.sampling import SamplingRows, drawn

SIZES = sorted({1, *(2**n for n in range(1, 12)), *(3 * 2**n for n in range(1, 10))})
"""1, 2, 4, 6, 8, 12, ... 2048 rows: at most a third of the rows of a graph are there only to fill it."""


class Graph:
    """What `run` launches, captured. `run` must do the same at the same addresses whenever it is called."""

    def __init__(self, run: Callable[[], Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Once as it is: kernels are compiled and workspaces allocated now, which a capture does not allow.
            run()
            # Other threads, of a trainer in this process, may go on using the device meanwhile.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            self._out = run()
            self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(self) -> Tensor:
        """The result, to be read before the next call."""
        self._graph.replay()
        return self._out


class Passes:
    """Forward passes of up to 2048 tokens as graphs; longer ones run as they are. `run` gives what the head reads of every
    token, from weights that stay where they are."""

    def __init__(self, run: Callable[[Tensor, Plan], Tensor], device: torch.device) -> None:
        self._run, self._device = run, device
        self._input_3N = torch.zeros(3, SIZES[-1], dtype=torch.int64, device=device)
        self._graphs: dict[int, Graph] = {}
        self._storage: Tensor | None = None

    def __call__(self, token_N: Tensor, plan: Plan) -> Tensor:
        """Rows after the last of `token_N` mean nothing."""
        count, slots = len(token_N), plan.slots
        size = rounded(count)
        if size is None or slots.keys_LSKTD is None:
            return self._run(token_N, plan)
        if slots.keys_LSKTD is not self._storage:
            self._graphs, self._storage = {}, slots.keys_LSKTD
            # A pool ends with the last of its graphs.
            self._pool = torch.cuda.graph_pool_handle()
        token, slot, position = self._input_3N[:, :size]
        torch._foreach_copy_([token[:count], slot[:count], position[:count]], [token_N, plan.slot_N, plan.position_N])
        # What fills up the graph writes to the slot that nobody has.
        slot[count:] = slots.num_slots
        position[count:] = 0
        if size not in self._graphs:
            self._graphs[size] = Graph(lambda: self._run(token, Plan(slots, 0, slot, position, ())), self._pool)
        return self._graphs[size]()


class Draws:
    """`sampling.drawn` as graphs, for settings that do not sort the vocabulary; for others it runs as it is."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[object, ...], tuple[list[Tensor], Graph]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, logits_RV: Tensor, rows: SamplingRows, key_R: Tensor, position_R: Tensor) -> Tensor:
        """As `sampling.drawn`."""
        count = len(logits_RV)
        size = rounded(count)
        if size is None or rows.max_top_k or rows.any_top_p:
            return drawn(logits_RV, rows, key_R, position_R)
        given = [logits_RV, key_R, position_R, *rows.tensors()]
        kind = (size, logits_RV.shape[1], rows.all_greedy, rows.any_greedy, rows.scaled, rows.any_min_p)
        if kind not in self._graphs:
            kept = [x.new_zeros(size, *x.shape[1:]) for x in given]
            logits, key, position, *settings = kept
            same = rows.with_tensors(*settings)
            self._graphs[kind] = kept, Graph(lambda: drawn(logits, same, key, position), self._pool)
        kept, graph = self._graphs[kind]
        for place, tensor in zip(kept, given, strict=True):
            place[:count].copy_(tensor)
        return graph()[:, :count]


def rounded(count: int) -> int | None:
    """The least of `SIZES` that holds `count` rows; None if there is none."""
    return next((size for size in SIZES if size >= count), None)
