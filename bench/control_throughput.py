"""Environment steps per second of whole training runs: asynchronous PPO and SAC, beside Stable-Baselines3 and Sample Factory.

    python bench/control_throughput.py [--peer-python .venv-control-peers/bin/python]
        [--sample-factory-python .venv-sample-factory/bin/python] [--rounds 3] [--json PATH]

`make bench-control-env bench-sample-factory-env` makes the peers' environments. All train the same networks with the same
batches, epochs and updates per step on the same cores, and take turns; the best round counts. A run counts from its first
fifth on, without evaluations, so that imports and the start of processes do not count.

Freerun      actor and trainer in processes of their own, pinned to disjoint cores: PPO one step behind (`lag 1`) and in turns
             (`lag 0`); SAC four chunks ahead, and in turns
SB3          one process, which collects and learns in turns, with as many threads as there are cores, or one: the better counts
Sample F.    its asynchronous mode: a rollout worker, an inference worker and a learner; PPO only, as it has nothing else
"""

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from freerun.environment import environment
from freerun.launch_control import launch_control
from freerun.metrics import Evaluation, Event, SampleRecord, Status, StepRecord
from freerun.recipes import cartpole_ppo, halfcheetah_sac
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase

SHARE = 0.2
"""Of a run, which does not count."""
PEERS = Path(__file__).resolve().parent / "peers" / "control_throughput_peers.py"


def ppo(env: str, steps: int, lag: int) -> ControlRun:
    recipe = cartpole_ppo.recipe()
    control = replace(recipe.control, phases=(Phase(env_steps=steps),), max_lag=lag, evaluations=0, final_eval_episodes=0)
    return _bare(replace(recipe, env=replace(recipe.env, id=env), control=control))


def sac(env: str, steps: int, ahead: int) -> ControlRun:
    recipe = halfcheetah_sac.recipe()
    phase = Phase(env_steps=steps, start=steps // 10, random=steps // 10)
    control = replace(recipe.control, phases=(phase,), ahead=ahead, evaluations=0, final_eval_episodes=0)
    return _bare(replace(recipe, env=replace(recipe.env, id=env), control=control))


def _bare(config: ControlRun) -> ControlRun:
    placement = PlacementConfig(kind="monarch", threads=1)
    return replace(config, actor=replace(config.actor, picture_frames=0), placement=placement)


class Clock:
    """A sink that keeps when steps of the trainer ended, and after how many environment steps."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def step(self, record: StepRecord) -> None:
        before = self.marks[-1][1] if self.marks else 0
        taken = record.metrics.get("env/steps", 0)
        assert isinstance(taken, int | float)
        self.marks.append((time.perf_counter(), before + int(taken)))

    def evaluation(self, record: Evaluation) -> None:
        """Not kept."""

    def event(self, record: Event) -> None:
        """Not kept."""

    def sample(self, record: SampleRecord) -> None:
        """Not kept."""

    def status(self, record: Status) -> None:
        """Not kept."""

    def close(self) -> None:
        """Nothing to close."""


def rate(marks: Sequence[tuple[float, int]], steps: int) -> float:
    """Environment steps per second from the first fifth of the run on."""
    first = next(i for i, (_, taken) in enumerate(marks) if taken >= SHARE * steps)
    (began, before), (ended, taken) = marks[first], marks[-1]
    return (taken - before) / (ended - began)


def own(config: ControlRun) -> float:
    clock, steps = Clock(), config.control.phases[0].env_steps
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(launch_control(config, Path(directory), clock, checkpoint_at_end=False))
    return rate(clock.marks, steps)


def peer(python: str, job: dict[str, Any]) -> float:
    """A run in another environment; its process writes marks as ours has them."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(Path(python).absolute()), str(PEERS), json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            cwd=folder,
            env=environ,
        )
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    return rate(json.loads(answer.removeprefix("answer ")), job["steps"])


def main() -> None:
    args = _arguments()
    best: dict[str, dict[str, float]] = {}
    cores = len(os.sched_getaffinity(0))
    for _ in range(args.rounds):
        for method, env, steps in (
            ("ppo", "CartPole-v1", args.ppo_steps),
            ("ppo", "HalfCheetah-v5", args.ppo_steps // 2),
            ("sac", "HalfCheetah-v5", args.sac_steps),
        ):
            runs: dict[str, Any] = {}
            if method == "ppo":
                runs |= {f"Freerun, lag {lag}": lambda lag=lag, e=env, s=steps: own(ppo(e, s, lag)) for lag in (1, 0)}
                config: ControlRun = ppo(env, steps, 0)
            else:
                runs["Freerun, 4 ahead"] = lambda e=env, s=steps: own(sac(e, s, 4))
                runs["Freerun, in turns"] = lambda e=env, s=steps: own(sac(e, s, 0))
                config = sac(env, steps, 0)
            if args.peer_python:
                for threads in dict.fromkeys((1, cores)):
                    job = _job("sb3", method, env, steps, threads, config)
                    runs[f"SB3, threads {threads}"] = lambda job=job: peer(args.peer_python, job)
            if args.sample_factory_python and method == "ppo" and env == "CartPole-v1":
                job = _job("sample-factory", method, env, steps, 1, config)
                runs["Sample Factory"] = lambda job=job: peer(args.sample_factory_python, job)
            found = best.setdefault(f"{method} on {env}", {})
            for system, run in runs.items():
                found[system] = max(found.get(system, 0.0), run())
                print(f"{method} on {env}, {system}: {found[system]:,.0f} steps/s", flush=True)
    for name, rates in best.items():
        others = [value for system, value in rates.items() if not system.startswith("Freerun")]
        ours = max(value for system, value in rates.items() if system.startswith("Freerun"))
        cells = ", ".join(f"{system} {value:,.0f}/s" for system, value in rates.items())
        print(f"{name}: {cells}" + (f"; best of ours / best other {ours / max(others):.2f}" if others else ""))
    if args.json:
        where = environment()
        kept = {name: where[name] for name in ("cpu", "cores_allowed", "commit", "started")}
        Path(args.json).write_text(json.dumps({**kept, "rounds": args.rounds, "best": best}, indent=1) + "\n")


def _job(system: str, method: str, env: str, steps: int, threads: int, config: ControlRun) -> dict[str, Any]:
    phase = config.control.phases[0]
    return {
        "system": system,
        "method": method,
        "env": env,
        "steps": steps,
        "threads": threads,
        "envs": config.actor.envs,
        "chunk": config.control.chunk,
        "epochs": config.trainer.epochs,
        "minibatches": config.trainer.minibatches,
        "batch": config.trainer.batch,
        "start": phase.start,
        "utd": phase.utd,
        "hidden": list(config.algorithm.hidden),  # type: ignore[attr-defined]
    }


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python of an environment with Stable-Baselines3")
    parser.add_argument("--sample-factory-python", help="the Python of one with Sample Factory")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts (default 3)")
    parser.add_argument("--ppo-steps", type=int, default=80_000, help="environment steps of a run of PPO on CartPole")
    parser.add_argument("--sac-steps", type=int, default=6_000, help="environment steps of a run of SAC")
    parser.add_argument("--json", help="write the numbers there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
