"""How well recipes of control learn, seed by seed, beside Stable-Baselines3 (online) and d3rlpy (recorded data) with the same
budget and the same settings. What was run before is kept, so an interruption costs the run in hand.

    python bench/control_learning.py [--recipes cartpole-ppo ...] [--seeds 3] [--peer-python .venv-control-peers/bin/python]

`make bench-control-env` makes the peers' environment. Results go to `docs/control-learning.json`, from which
`tools/control_table.py` makes a page. Every run has one thread; seconds are of the processor. Policies are judged by the mean
return of 20 episodes of the actions that they think best. A peer gets the recipe's widths, learning rates, batch, environment
steps or updates, data set, and exploration; what it does not have stays at its defaults.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from freerun.claims import episodes
from freerun.claims.run import write
from freerun.environment import environment
from freerun.recipes import base as recipes
from freerun.recipes.control_base import ControlRun
from freerun.tasks import grades
from freerun.trainer.control_config import DatasetConfig

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "control-learning.json"
PEERS = {"ppo": "Stable-Baselines3", "dqn": "Stable-Baselines3", "sac": "Stable-Baselines3", "td3": "Stable-Baselines3"}
PEERS |= dict.fromkeys(("bc", "td3_bc", "iql", "cql", "awac"), "d3rlpy")


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in range(args.seeds):
        for name in args.recipes:
            config = compared(recipes.load(name).recipe())
            method = config.algorithm.build().name
            entry = known.setdefault(name, {"method": method, "env": config.env.id, **amount(config), "runs": {}})
            if not _has(entry, "Freerun", seed):
                ran = episodes.play(config, seed=seed)
                _keep(
                    known,
                    entry,
                    "Freerun",
                    seed,
                    {k: ran[k] for k in ("return", "start", "score", "cpu", "curves") if k in ran},
                )
            peer = PEERS.get(method)
            if args.peer_python and peer and not _has(entry, peer, seed):
                _keep(known, entry, peer, seed, _peer(args.peer_python, peer, name, config, seed))


def compared(config: ControlRun) -> ControlRun:
    """The part of a recipe that is compared: where it begins with recorded data, what it learns from that alone."""
    phases = config.control.phases
    return config if phases[0].env_steps else replace(config, control=replace(config.control, phases=phases[:1]))


def amount(config: ControlRun) -> dict[str, int]:
    """The budget."""
    phases = config.control.phases
    return {"env_steps": sum(p.env_steps for p in phases), "updates": sum(p.updates for p in phases)}


def _has(entry: dict[str, Any], system: str, seed: int) -> bool:
    return str(seed) in entry["runs"].get(system, {})


def _keep(known: dict[str, Any], entry: dict[str, Any], system: str, seed: int, numbers: dict[str, Any]) -> None:
    where = environment()
    entry["runs"].setdefault(system, {})[str(seed)] = numbers | {"commit": where["commit"][:12], "cpu_model": where["cpu"]}
    write(RESULTS, known)
    print(f"{entry['method']} on {entry['env']}, {system}, seed {seed}: {numbers['return']:.1f} in {numbers['cpu']:.0f} s")


def _peer(python: str, system: str, name: str, config: ControlRun, seed: int) -> dict[str, Any]:
    job: dict[str, Any] = {
        "system": system,
        "recipe": name,
        "env": config.env.id,
        "method": config.algorithm.build().name,
        "algorithm": asdict(config.algorithm),
        "batch": config.trainer.batch,
        "envs": config.actor.envs,
        "chunk": config.control.chunk,
        "epochs": config.trainer.epochs,
        "minibatches": config.trainer.minibatches,
        "phases": [asdict(phase) for phase in config.control.phases],
        "episodes": episodes.JUDGED,
        "looks": episodes.LOOKS,
        "look_episodes": episodes.LOOK_EPISODES,
        "seed": seed,
    }
    data = [source for source in config.sources if isinstance(source, DatasetConfig)]
    if data:
        for env in grades.missing([data[0].data]):
            grades.make(env)
        job |= {"data": str(data[0].data.path), "best_share": data[0].best_share, "scores": data[0].data.build().scores}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        script = Path(__file__).resolve().parent / "peers" / "control_learning_peers.py"
        done = subprocess.run(
            [str(Path(python).absolute()), str(script), str(path)], stdout=subprocess.PIPE, text=True, check=True, cwd=folder
        )
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    return json.loads(answer.removeprefix("answer "))


def _arguments() -> Any:
    usual = ["cartpole-ppo", "cartpole-dqn", "pendulum-sac", "pendulum-td3", "hopper-sac", "halfcheetah-sac"]
    usual += ["pendulum-bc", "pendulum-td3-bc", "pendulum-iql", "pendulum-cql", "pendulum-awac"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=usual, metavar="RECIPE", help=f"default: {' '.join(usual)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to so many (default 3)")
    parser.add_argument("--peer-python", help="the Python of the peers' environment")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
