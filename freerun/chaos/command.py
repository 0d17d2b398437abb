"""`freerun chaos`: its arguments, and what it prints."""

import argparse
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from freerun import config as configs
from freerun.chaos import show, traps
from freerun.chaos.harness import Harness, RunResult
from freerun.errors import ConfigError
from freerun.launch import preload
from freerun.recipes import base as recipes
from freerun.recipes.control_base import ControlRun

HELP = "kill, freeze, delay and corrupt runs of a recipe at random, resume them, and audit what came of it"
DETAIL = (
    "Further words are overrides, as for `freerun run`. Exit status 1 if anything was lost, repeated, left behind or ended "
    "without a word. Every executor has a process of its own, on Linux."
)
OVERRIDES = (
    *("--placement.kind", "monarch"),
    *("--placement.preload", "true"),
    *("--control.sample_every", "1"),
    *("--control.checkpoint_every", "5"),
    *("--control.executor_restarts", "1000000"),
    *("--control.call_deadline", "60"),
    *("--reward.deadline", "2"),
    *("--records.keep_checkpoints", "3"),
)
"""What the audit needs to see, and deadlines that fit a run that is hurt every few seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("recipe", help="a name from `freerun list`, or a Python file")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="begin no further fault after so long")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which faults, in which order")
    parser.add_argument("--cycles", type=int, metavar="N", help="so many faults at most")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the runs go (default: runs/chaos-DATE-TIME)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes (default: DIR/chaos.json)")


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Hurt runs until time or cycles are used up; print and write what came of it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has had interrupts ignored: runs must not be left
        signal.signal(number, signal.default_int_handler)
    if sys.platform != "linux":
        raise ConfigError("the harness looks for processes in /proc", given=sys.platform, expected="Linux", todo="use one")
    recipe = recipes.load(arguments.recipe).recipe()
    if isinstance(recipe, ControlRun):
        raise ConfigError(
            "the harness audits items, which a run of environments does not have",
            given=arguments.recipe,
            expected="a recipe of a language model",
            todo="`freerun list` shows the recipes; tiny-faults is the smallest",
        )
    console = Console()
    directory = (arguments.dir or Path("runs") / f"chaos-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    words = [*OVERRIDES, *rest]
    config = configs.override(recipe, configs.read_overrides(words))
    harness = Harness(
        arguments.recipe,
        directory,
        minutes=arguments.minutes,
        seed=arguments.seed,
        cycles=arguments.cycles,
        overrides=words,
        modules=[*preload(config), traps.__name__],
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    results: list[RunResult] = []
    about = {"recipe": arguments.recipe, "seed": arguments.seed, "overrides": list(rest)}
    out = arguments.out or directory / "chaos.json"
    for result in harness.runs():
        results.append(result)
        show.write(show.summary(results, about), out)
        for sentence in (*result.lost, *result.repeated, *result.unlike):
            console.print(f"run of seed {result.seed}: {sentence}", markup=False, soft_wrap=True)
    data = show.summary(results, about)
    console.print(show.table(data))
    console.print(f"{show.verdict(data)}; written to {out}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(show.found(data).values()) else 0
