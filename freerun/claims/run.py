"""Runs claims and keeps what came out, run by run, so that an interruption costs the run in hand and nothing else.

A run (an arm with a seed) is kept in the user's cache under the fingerprint of the code that it follows from. Asked for again
with the same code it is not run again; with other code it is. A claim's result is written when all of its runs are there, by
one rename.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import freerun
from freerun.claims.base import MIN_SEEDS, Claim, check_numbers, compare
from freerun.claims.digest import digest
from freerun.claims.verdict import interval, together
from freerun.environment import environment
from freerun.errors import ConfigError
from freerun.models.gguf import cache_directory

Runs = dict[str, dict[int, dict[str, Any]]]
"""Numbers by arm and seed; `seconds` among them are those of a processor that the run took."""


def results_directory() -> Path:
    """Where results belong: `docs/claims` of the source tree, or of the present folder where the package is installed."""
    source = Path(freerun.__file__).resolve().parent.parent
    return (source if (source / "pyproject.toml").is_file() else Path.cwd()) / "docs" / "claims"


def run(
    name: str,
    claim: Claim,
    file: Path,
    *,
    seeds: int | None = None,
    fresh: bool = False,
    progress: Callable[[Runs], None] = lambda runs: None,
) -> dict[str, Any]:
    """Run what is not kept yet, and return the result, JSON-able. `file` is the claim's own; `progress` is told after each run.

    Raises `ConfigError` for too few seeds, and for arms that do not return what they should.
    """
    seeds = claim.seeds if seeds is None else seeds
    if seeds < MIN_SEEDS:
        raise ConfigError(
            "too few seeds to say anything about the spread",
            given=seeds,
            expected=f"at least {MIN_SEEDS}",
            todo="raise --seeds",
        )
    code = digest(file)
    kept = cache_directory() / "claims" / f"{name}-{code}.json"
    runs: Runs = {arm: {} for arm in claim.arms} if fresh else _kept(kept, claim)
    threads = torch.get_num_threads()
    # One thread, because the order in which several add up is not the same everywhere.
    torch.set_num_threads(1)
    try:
        for seed in range(seeds):
            for arm, function in claim.arms.items():
                if seed not in runs[arm]:
                    began = time.process_time()
                    numbers = dict(function(seed))
                    check_numbers(claim, name, arm, numbers)
                    runs[arm][seed] = numbers | {"seconds": round(time.process_time() - began, 2)}
                    write(kept, runs)
                progress(runs)
    finally:
        torch.set_num_threads(threads)
    return result(name, claim, {arm: {s: ran[s] for s in range(seeds)} for arm, ran in runs.items()}, code)


def _kept(path: Path, claim: Claim) -> Runs:
    """Runs of an earlier attempt at this code, those of arms that there still are."""
    stored = json.loads(path.read_text()) if path.is_file() else {}
    return {arm: {int(seed): numbers for seed, numbers in stored.get(arm, {}).items()} for arm in claim.arms}


def result(name: str, claim: Claim, runs: Runs, code: str) -> dict[str, Any]:
    """Everything that a reader needs to judge the claim."""
    compared = [compare(claim, one, runs) for one in claim.expected]
    where = environment()
    own = {"freerun", "torch", "transformers"}
    return {
        "name": name,
        "sentence": claim.sentence,
        "paper": claim.paper,
        "method": claim.method.__name__,
        "metric": claim.metric,
        "better": claim.better,
        "verdict": together([one.verdict for one in compared]),
        "compared": [asdict(one) for one in compared],
        "arms": {arm: _summary(claim, ran) for arm, ran in runs.items()},
        "seeds": len(next(iter(runs.values()))),
        "quick": claim.quick,
        "command": f"freerun claims {name}",
        "minutes": round(sum(n["seconds"] for ran in runs.values() for n in ran.values()) / 60, 1),
        "commit": where["commit"],
        "code": code,
        "date": where["started"][:10],
        "hardware": f"{where['cpu']}, one thread",
        "versions": {"python": where["python"]} | {k: v for k, v in where["packages"].items() if k in own},
    }


def _summary(claim: Claim, ran: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **asdict(interval([float(numbers[claim.metric]) for numbers in ran.values()])),
        "runs": {str(seed): dict(numbers) for seed, numbers in ran.items()},
    }


def write(path: Path, content: Any) -> None:
    """Write JSON by one rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.rename(path)


def stored(directory: Path) -> dict[str, dict[str, Any]]:
    """Results in `directory` by the name of their claim."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))}
