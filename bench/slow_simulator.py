"""Seconds that one, or four, environments in turns with the trainer take for a piece of work, and four actors beside it (APT).

The environment is Pendulum with a sleep in each step, which costs no processor: a simulator that runs elsewhere. All three make
the same number of environment steps and of updates, in this process, with a thread for each actor and one for the trainer. A
run begins with the start of its executors, which takes it a few tenths of a second.

    python bench/slow_simulator.py --delays 0.005 0.02 0.08

The learning curves behind it, on a simulated clock, are those of `freerun claims apt-slow-simulator`.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from freerun.actors.environment import ActorConfig
from freerun.launch_control import launch_control
from freerun.metrics import Fanout
from freerun.recipes import pendulum_apt
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase


def config(delay: float, steps: int, *, actors: int, envs: int, ahead: int) -> ControlRun:
    recipe = pendulum_apt.recipe()
    control = replace(
        recipe.control,
        phases=(Phase(env_steps=steps, start=64, random=64, utd=0.5),),
        ahead=ahead,
        evaluations=0,
        final_eval_episodes=0,
    )
    return replace(
        recipe,
        control=control,
        actors=actors,
        # Environments of one actor are stepped at the same time, by as many threads.
        actor=ActorConfig(envs=envs, workers=envs, delay_median=delay, delay_sigma=0.0, picture_frames=0),
        trainer=replace(recipe.trainer, batch=64),
        placement=PlacementConfig(kind="inline", threads=1),
    )


def seconds(run: ControlRun) -> float:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(launch_control(run, Path(directory), Fanout(()), checkpoint_at_end=False))
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[0.005, 0.02, 0.08], help="seconds of a step of the simulator"
    )
    parser.add_argument("--steps", type=int, default=600, help="environment steps; half as many updates")
    options = parser.parse_args()
    ways = {
        "turns, 1": {"actors": 1, "envs": 1, "ahead": 0},
        "turns, 4": {"actors": 1, "envs": 4, "ahead": 0},
        "four actors": {"actors": 4, "envs": 1, "ahead": 4},
    }
    print(f"{'delay':>8}" + "".join(f"{way:>14}" for way in ways))
    for delay in options.delays:
        took = [seconds(config(delay, options.steps, **way)) for way in ways.values()]
        print(f"{delay * 1e3:>5.0f} ms" + "".join(f"{s:>12.1f} s" for s in took), flush=True)


if __name__ == "__main__":
    main()
