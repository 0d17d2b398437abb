"""Freerun at lag 0, 1, 2 and 4 on one recipe: how long it takes, and how well what comes out does on held-out problems.

    python bench/lags.py
    python bench/lags.py smollm2-arithmetic --lags 0 1 --seeds 1 --json out.json

Every run is a process of its own, placed as the recipe says: for those that ship, a process for each executor. At lag 0 the
window is 1, so that the trainer waits for data of its newest version, which is the synchronous loop. Seconds are those of the
steps, without warm start and evaluation. Seeds are outside and lags inside, so what else the machine does hits all lags.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from freerun.rundir import read_log


def run(recipe: str, lag: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / "run"
        command = [
            str(Path(sys.executable).with_name("freerun")),
            "run",
            recipe,
            "--plain",
            "--dir",
            str(directory),
            "--seed",
            str(seed),
        ]
        command += ["--control.max-lag", str(lag), "--control.eval-every", "0", *overrides]
        if lag == 0:
            command += ["--control.window", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        steps = read_log(directory / "metrics.jsonl").rows
        evaluations = read_log(directory / "evals.jsonl").rows
    times = [row["seconds"] for row in steps]
    return {
        "seconds": times[-1] - times[0],
        "steps": len(times) - 1,
        "before": evaluations[0]["accuracy"],
        "after": evaluations[-1]["accuracy"],
        "mean_lag": fmean(row["metrics"]["lag/mean"] for row in steps),
        "ess": fmean(row["metrics"]["ess"] for row in steps if "ess" in row["metrics"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="tiny-addition")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    asked, overrides = parser.parse_known_args()
    found: dict[int, list[dict[str, Any]]] = {lag: [] for lag in asked.lags}
    for seed in range(asked.seeds):
        for lag in asked.lags:
            found[lag].append(run(asked.recipe, lag, seed, overrides))
            print(f"seed {seed} lag {lag}", found[lag][-1], file=sys.stderr, flush=True)
    show(asked.recipe, found)
    if asked.json:
        asked.json.write_text(json.dumps({"recipe": asked.recipe, "overrides": overrides, "lags": found}, indent=1))


def show(recipe: str, found: dict[int, list[dict[str, Any]]]) -> None:
    """Means over seeds; seconds relative to the first lag are of the same seed."""
    first = next(iter(found.values()))
    table = Table(title=f"{recipe}, {len(first)} seeds, means")
    for column in ("lag", "s a step", "speed", "accuracy before", "after", "each seed", "mean lag", "ess"):
        table.add_column(column, justify="right")
    for lag, runs in found.items():
        speed = fmean(one["seconds"] / run["seconds"] for one, run in zip(first, runs, strict=True))
        table.add_row(
            str(lag),
            f"{fmean(run['seconds'] / run['steps'] for run in runs):.3f}",
            f"{speed:.2f}",
            *(f"{fmean(run[name] for run in runs):.1%}" for name in ("before", "after")),
            ", ".join(f"{run['after']:.1%}" for run in runs),
            *(f"{fmean(run[name] for run in runs):.2f}" for name in ("mean_lag", "ess")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
