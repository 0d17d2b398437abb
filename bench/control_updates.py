"""Gradient updates per second of SAC, TD3+BC and IQL, sampling included, beside other implementations of the same updates.

    python bench/control_updates.py [--peer-python .venv-control-peers/bin/python] [--rounds 7] [--hidden 256]
                                    [--device cpu] [--json PATH]

`make bench-control-env` makes the peers' environment; without `--peer-python` only our own numbers are shown. Every system is
a process of its own with one thread and takes its turn in every round; the best round counts. All have the same widths
(Hopper's), two hidden layers, batches of 256 from 100,000 stored rows, and the defaults of the method: SAC updates critics,
actor and temperature each time, TD3+BC its actor every second time, IQL everything.

Stable-Baselines3 and d3rlpy are called as their users do; `plain loop` is the update written out in PyTorch, one network after
the other, as the single-file implementations do (CleanRL for SAC, CORL for TD3+BC and IQL).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from freerun.algorithms.control import iql, sac, td3_bc
from freerun.algorithms.control_base import ControlConfig
from freerun.store.phases import Phase, Plan
from freerun.trainer.control import ControlTrainer
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import Chunk, Spaces
from freerun.weights import inprocess

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from rounds import Operation, Peer, compare, serve, table

OWN, PEERS = "Freerun", ("plain loop", "Stable-Baselines3", "d3rlpy")
OBS, ACTION, ROWS, BATCH, UPDATES = 11, 3, 100_000, 256, 100


def main() -> None:
    args = _arguments()
    if args.serve:
        serve(operations(args.hidden, args.device))
        return
    peers = {OWN: Peer([sys.executable, __file__, "--serve", "--hidden", str(args.hidden), "--device", args.device])}
    if args.peer_python:
        script = str(Path(__file__).parent / "peers" / "control_updates_peers.py")
        for name in PEERS:
            peers[name] = Peer([args.peer_python, script, name, str(args.hidden)])
    best = compare(peers, args.rounds)
    for peer in peers.values():
        peer.close()
    print(table(best, OWN, "updates per second"))
    if args.json:
        Path(args.json).write_text(json.dumps({"hidden": args.hidden, "rounds": args.rounds, "best": best}, indent=1) + "\n")


def operations(width: int, device: str) -> dict[str, Operation]:
    torch.set_num_threads(1)
    hidden = (width, width)
    return {
        "SAC": _updates(sac.Config(hidden=hidden), device),
        "TD3+BC": _updates(td3_bc.Config(hidden=hidden), device),
        "IQL": _updates(iql.Config(hidden=hidden), device),
    }


def _updates(algorithm: ControlConfig, device: str) -> Operation:
    spaces, phases = Spaces(obs=(OBS,), actions=ACTION, discrete=False), [Phase(env_steps=1)]
    config = ControlTrainerConfig(batch=BATCH, device=device)
    trainer = ControlTrainer(algorithm, spaces, config, phases, [ReplayConfig(capacity=ROWS)], inprocess.publisher())
    trainer.start()
    trainer.accumulate([_chunk(ROWS // 8)])

    def updates() -> int:
        trainer.finish_step([], Plan(updates=UPDATES))
        if device != "cpu":
            torch.cuda.synchronize()
        return UPDATES

    return updates


def _chunk(steps: int) -> Chunk:
    make, shape = torch.Generator().manual_seed(0), (steps, 8)
    seen = torch.randn(steps + 1, 8, OBS, generator=make)
    columns = {
        "obs": seen[:-1],
        "next_obs": seen[1:],
        "action": torch.rand(*shape, ACTION, generator=make) * 2 - 1,
        "reward": torch.randn(shape, generator=make),
        "terminated": torch.rand(shape, generator=make) < 0.01,
        "truncated": torch.zeros(shape, dtype=torch.bool),
        "log_prob": torch.zeros(shape),
        "version": torch.zeros(shape, dtype=torch.int32),
        "episode": torch.arange(8).expand(shape).contiguous(),
        "step": torch.arange(steps, dtype=torch.int32)[:, None].expand(shape).contiguous(),
    }
    return Chunk(item=0, actor=0, columns=columns, oldest_version=0)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python of the peers' environment")
    parser.add_argument("--hidden", type=int, default=256, help="width of both hidden layers (default 256)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts (default 7)")
    parser.add_argument("--device", default="cpu", help="where our networks are; the peers' stay on the CPU")
    parser.add_argument("--json", help="write the numbers there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
