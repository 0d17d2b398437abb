"""Rows per second into and out of replay, beside the buffers of Stable-Baselines3 and TorchRL.

    python bench/control_replay.py [--peer-python .venv-control-peers/bin/python] [--rounds 7] [--json PATH]

`make bench-control-env` makes the peers' environment; without `--peer-python` only our own numbers are shown. Every system is
a process of its own with one thread, holds the same number of rows of the same widths (Hopper's), and takes its turn in every
round; the best round counts. What is compared, each in the way that its system is used:

insert         chunks of 32 steps of 8 environments, into memory that was written before: one call for us and for TorchRL
               (`extend`), a call per step for Stable-Baselines3, whose buffer takes one step of all environments at a time.
               Rows are what each stores of a transition: 134 bytes in 11 columns for us (flags, log-prob, version, episode,
               step, and which row follows), 112 in 6 for Stable-Baselines3, 106 in 6 for TorchRL
insert mapped  the same into memory-mapped files
sample         batches of 256 rows with what TD learning reads: obs, action, reward, next_obs, and the discount or done flag
sample ahead   the rows of 64 updates that are made before new rows come, as our trainer draws them: one gather, then views
prioritised    batches of 256 by priority, each followed by an update of these priorities
three steps    batches of three-step returns, made when they are drawn
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from freerun.store.phases import Phase
from freerun.store.selectors import Prioritised, Uniform
from freerun.trainer.control_config import ReplayConfig
from freerun.trainer.sources import Source, Sources
from freerun.trainer.storage import Storage

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from rounds import Operation, Peer, compare, serve, table

OWN = "Freerun"
STEPS, ENVS, OBS, ACTION = 32, 8, 11, 3
BATCH, AHEAD = 256, 64
NAMES = ("obs", "action", "reward", "next_obs", "discount")


def main() -> None:
    args = _arguments()
    if args.serve:
        serve(operations(args.rows, Path(args.folder)))
        return
    # A folder of this run's own: memory-mapped files of an earlier one are in TorchRL's way.
    with tempfile.TemporaryDirectory(prefix="freerun-replay-", dir=args.folder) as folder:
        own = [sys.executable, __file__, "--serve", "--rows", str(args.rows), "--folder", folder]
        peers = {OWN: Peer(own)}
        if args.peer_python:
            script = str(Path(__file__).parent / "peers" / "control_replay_peers.py")
            for name in ("Stable-Baselines3", "TorchRL"):
                peers[name] = Peer([args.peer_python, script, name, str(args.rows), folder])
        best = compare(peers, args.rounds)
        for peer in peers.values():
            peer.close()
    print(table(best, OWN, "rows per second"))
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": args.rows, "rounds": args.rounds, "best": best}, indent=1) + "\n")


def chunk(item: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What an actor sends."""
    shape = (STEPS, ENVS)
    seen = torch.randn(STEPS + 1, ENVS, OBS, generator=generator)
    return {
        "obs": seen[:-1],
        "next_obs": seen[1:],
        "action": torch.rand(*shape, ACTION, generator=generator) * 2 - 1,
        "reward": torch.randn(shape, generator=generator),
        "terminated": torch.zeros(shape, dtype=torch.bool),
        "truncated": torch.zeros(shape, dtype=torch.bool),
        "log_prob": torch.zeros(shape),
        "version": torch.zeros(shape, dtype=torch.int32),
        "episode": torch.arange(ENVS).expand(shape).contiguous(),
        "step": torch.arange(item * STEPS, (item + 1) * STEPS, dtype=torch.int32)[:, None].expand(shape).contiguous(),
    }


def operations(rows: int, folder: Path) -> dict[str, Operation]:
    torch.set_num_threads(1)
    make = torch.Generator().manual_seed(0)
    chunks = [chunk(i, make) for i in range(64)]
    plain, mapped = Storage(rows), Storage(rows, directory=folder / "freerun")
    numbers = iter(range(10**9))

    def insert(storage: Storage) -> int:
        for each in chunks:
            storage.insert_chunk(next(numbers), 0, each)
        return len(chunks) * STEPS * ENVS

    while plain.total < rows:
        insert(plain)

    def source(config: ReplayConfig) -> Source:
        made = Source(config, rows, gamma=0.99, directory=None)
        for i in range(rows // (STEPS * ENVS)):
            made.sampler.inserted(made.storage.insert_chunk(i, 0, chunks[i % len(chunks)]))
        return made

    draws = torch.Generator().manual_seed(1)
    uniform, by_priority = source(ReplayConfig(sampler=Uniform())), source(ReplayConfig(sampler=Prioritised(0.6)))
    three = Source(ReplayConfig(steps=3), rows, gamma=0.99, directory=None)
    three.storage = uniform.storage
    ahead = Sources(
        {"replay": uniform}, batch=BATCH, names=frozenset(NAMES), device=torch.device("cpu"), generator=torch.Generator()
    )
    ahead.begin(0, Phase(env_steps=1), rollouts=False)

    def sample(of: Source) -> int:
        for _ in range(AHEAD):
            of.draw(BATCH, frozenset(NAMES), draws, 0)
        return AHEAD * BATCH

    def sample_ahead() -> int:
        for batches in ahead.batches(AHEAD, step=0, version=0, max_age=None):
            batches.of("")
        return AHEAD * BATCH

    def prioritised() -> int:
        for _ in range(AHEAD):
            columns = by_priority.draw(BATCH, frozenset(NAMES), draws, 0)
            by_priority.sampler.surprised(columns["row"], columns["reward"].abs())
        return AHEAD * BATCH

    return {
        "insert": lambda: insert(plain),
        "insert mapped": lambda: insert(mapped),
        "sample": lambda: sample(uniform),
        "sample ahead": sample_ahead,
        "prioritised": prioritised,
        "three steps": lambda: sample(three),
    }


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python of the peers' environment")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that the buffers hold (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts (default 7)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where memory-mapped files go for the time of the run")
    parser.add_argument("--json", help="write the numbers there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
