"""What journalling and checkpointing cost a run, as a share of the time of its steps. Measured inside one run, so that a busy
neighbour disturbs both alike.

    python bench/journal_overhead.py [--recipe tiny-addition] [--steps 60] [--checkpoint-every 20] [--KEY VALUE ...]

The recipe is run in one process, its executors on threads. Every call that turns a group into bytes, appends it to the journal
and flushes it to the disk, shortens the journal, or writes a checkpoint is timed on the wall's clock where it happens; the
time of a checkpoint counts in full, although generators go on meanwhile. Steps are timed from the end of one to the end of the
next. Words after the options are overrides of the recipe.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from freerun import config as configs
from freerun import intake
from freerun.checkpoint import Checkpoints
from freerun.environment import environment
from freerun.launch import launch
from freerun.metrics import Fanout
from freerun.recipes import base as recipes
from freerun.rundir import RunDirectory, read_log
from freerun.store.journal import Journal


@contextmanager
def timed(owner: Any, name: str, label: str, seconds: Counter, calls: Counter) -> Iterator[None]:
    """While the block runs, add up the time that calls of `owner.name` take."""
    plain = vars(owner)[name]

    def sync(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - began
            calls[label] += 1

    async def overlapping(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return await plain(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - began
            calls[label] += 1

    setattr(owner, name, overlapping if asyncio.iscoroutinefunction(plain) else sync)
    try:
        yield
    finally:
        setattr(owner, name, plain)


TIMED: tuple[tuple[Any, str, str], ...] = (
    (intake, "encode_group", "encode groups"),
    (Journal, "finished", "append to the journal and flush it"),
    (Checkpoints, "save", "checkpoints, journal shortened"),
)


def measured(config: Any, directory: Path) -> dict[str, Any]:
    """Run `config` and add up."""
    seconds: Counter = Counter()
    calls: Counter = Counter()
    files = RunDirectory.create(directory, {"config": configs.dump(config)})
    sinks = Fanout([files])
    with ExitStack() as stack:
        for owner, name, label in TIMED:
            stack.enter_context(timed(owner, name, label, seconds, calls))
        try:
            asyncio.run(launch(config, directory, sinks))
        finally:
            sinks.close()
    steps = read_log(directory / "metrics.jsonl").rows
    total = steps[-1]["seconds"] - steps[0]["seconds"] + steps[0]["metrics"]["time/step"]
    size = sum(path.stat().st_size for path in directory.rglob("*.safetensors"))
    return {
        "steps": len(steps),
        "seconds": total,
        "parts": {label: {"seconds": seconds[label], "calls": calls[label]} for _, _, label in TIMED},
        "share": sum(seconds.values()) / total,
        "checkpoint_bytes": size // max(1, len(Checkpoints(directory / "checkpoints").all())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny-addition")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--checkpoint-every", type=int, default=20)
    parser.add_argument("--directory", type=Path, help="where the run goes: the disk that is measured (default: here)")
    parser.add_argument("--json", type=Path, help="a list of runs, in which this one replaces that of the same recipe")
    options, rest = parser.parse_known_args()
    changes = {
        "control.steps": str(options.steps),
        "control.checkpoint_every": str(options.checkpoint_every),
        "control.eval_every": "0",
        "control.final_eval_prompts": "0",
        "placement.kind": "inline",
        **configs.read_overrides(rest),
    }
    config = configs.override(recipes.load(options.recipe).recipe(), changes)
    with tempfile.TemporaryDirectory(dir=options.directory or Path.cwd()) as folder:
        result = measured(config, Path(folder) / "run")
    where = environment()
    result |= {name: where[name] for name in ("commit", "cpu", "cores_allowed", "python", "packages")}
    result |= {"machine": platform.machine(), "recipe": options.recipe, "changes": changes, "groups": config.control.groups}
    for label, part in result["parts"].items():
        share = part["seconds"] / result["seconds"]
        sys.stdout.write(f"{label:<40}{part['calls']:>7} calls{part['seconds']:>9.3f} s{share:>8.2%} of step time\n")
    sys.stdout.write(f"{'all':<40}{result['steps']:>7} steps{result['seconds']:>9.3f} s{result['share']:>8.2%}\n")
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else []
        others = [one for one in known if one["recipe"] != options.recipe]
        options.json.write_text(json.dumps([*others, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
