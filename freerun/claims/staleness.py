"""What staleness costs each method: the tiny transformer at lags 0 to 16, several seeds, every method at its defaults.

    python -m freerun.claims.staleness                    the methods that train on rollouts alone
    python -m freerun.claims.staleness aipo grpo          these
    python -m freerun.claims.staleness --lags 0 4 16 --seeds 5

Each cell (method, lag, seed) is kept under the fingerprint of the code that it follows from, so the study can be interrupted,
and grow method by method. What it finds is in `docs/staleness-study.json`, of which `tools/staleness_table.py` makes a page.
"""

import argparse
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from freerun.algorithms import language
from freerun.claims import tiny
from freerun.claims.digest import digest
from freerun.claims.run import results_directory, write
from freerun.config import nearest
from freerun.environment import environment
from freerun.errors import ConfigError
from freerun.models.gguf import cache_directory

LAGS = (0, 1, 2, 4, 8, 16)
TOLD: Mapping[str, Mapping[str, Any]] = {"topr": {"rewards": "zero_one"}}
"""What a method has to be told about the job, whose rewards are 0 and 1; all else is at its defaults."""
KEPT = ("accuracy", "start", "reward", "mean_reward", "ess", "clipped", "entropy", "lag", "diverged", "cpu")
"""What a cell keeps of a run, see `tiny.train`."""


BEARABLE = 0.05
"""Accuracy that a method may lose against lag 0 and still count as holding."""


def methods() -> dict[str, ModuleType]:
    """Every method by name."""
    found = (importlib.import_module(f"{language.__name__}.{info.name}") for info in pkgutil.iter_modules(language.__path__))
    return {module.__name__.rpartition(".")[2]: module for module in found}


def suited(module: ModuleType) -> bool:
    """Whether a method learns from rollouts and their rewards alone: no demonstrations, no critic, nobody's values."""
    algorithm = module.Config().build()
    foreign = {"mask_expert", "value_reference"} & algorithm.columns
    return "advantage" in algorithm.columns and not foreign and not algorithm.has_critic


def cell(name: str, module: ModuleType, lag: int, seed: int) -> dict[str, Any]:
    """The numbers of one run, made now if they are not kept."""
    code = digest(Path(tiny.__file__)) + digest(Path(str(module.__file__)))
    key = hashlib.sha256(f"{code} {lag} {seed}".encode()).hexdigest()[:16]
    file = cache_directory() / "claims" / f"staleness-{name}-{key}.json"
    if not file.is_file():
        run = tiny.train(module.Config(**TOLD.get(name, {})), seed=seed, lag=lag)
        write(file, {name: run[name] for name in KEPT})
    return json.loads(file.read_text(encoding="utf-8"))


def losses(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], lag: str) -> list[float]:
    """By how much accuracy is lower at `lag` than at lag 0, seed by seed."""
    return [cells["0"][seed]["accuracy"] - ran["accuracy"] for seed, ran in cells[lag].items()]


def holds_to(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> int:
    """The largest lag to which a method holds: there, and at every smaller one of the study, it loses `BEARABLE` at most
    against lag 0, mean over seeds."""
    held = 0
    for lag in sorted(map(int, cells)):
        if fmean(losses(cells, str(lag))) > BEARABLE:
            break
        held = lag
    return held


def study(names: Sequence[str], lags: Sequence[int], seeds: int, file: Path, console: Console) -> None:
    """Run every cell of these methods, and write each method's into `file` when it is complete; what is there of other methods
    stays. Raises `ConfigError` for an unknown method."""
    known = methods()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown method '{name}'", given=name, expected=f"one of: {nearest(name, known)}", todo="correct the name"
            )
    torch.set_num_threads(1)
    for name in names:
        cells: dict[str, dict[str, Mapping[str, Any]]] = {}
        for lag in lags:
            cells[str(lag)] = {str(seed): cell(name, known[name], lag, seed) for seed in range(seeds)}
            accuracies = "  ".join(f"{one['accuracy']:.3f}" for one in cells[str(lag)].values())
            console.print(f"{name:>16}  lag {lag:>2}  {accuracies}", highlight=False)
        where = environment()
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        stored[name] = {
            "cells": cells,
            "minutes": round(sum(one["cpu"] for ran in cells.values() for one in ran.values()) / 60, 1),
            "commit": where["commit"],
            "date": where["started"][:10],
            "hardware": f"{where['cpu']}, one thread",
            "versions": {"python": where["python"], "torch": where["packages"]["torch"]},
        }
        write(file, dict(sorted(stored.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="names of algorithm files")
    parser.add_argument("--lags", nargs="+", type=int, default=LAGS, metavar="L", help="lags (default: 0 1 2 4 8 16)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="run seeds 0 to N - 1 (default 3)")
    default = results_directory().parent / "staleness-study.json"
    parser.add_argument("--out", type=Path, default=default, metavar="FILE", help="where the results are kept")
    asked = parser.parse_args()
    names = asked.methods or [name for name, module in methods().items() if suited(module)]
    study(names, asked.lags, asked.seeds, asked.out, Console())


if __name__ == "__main__":
    main()
