"""Give every reader of `tests/fuzzing/targets.py` many inputs and count them in `docs/guarantees/fuzz.json`.

    .venv/bin/python tools/fuzz.py                     10000 inputs each
    .venv/bin/python tools/fuzz.py --inputs 500 journal     fewer, to one of them

Ends with an error at the first input that a reader neither read nor refused by name. The counts come into docs/guarantees.md by
`make docs`.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "guarantees" / "fuzz.json"


def tried(target: Any, inputs: int, seed: int) -> int:
    """How many inputs `target` was given. Raises what the first that went wrong raised."""
    import hypothesis

    count = 0

    def check(value: object) -> None:
        nonlocal count
        count += 1
        target.check(value)

    settings = hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(value=target.inputs)(check)))()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="names of targets (default: all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs for each (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["HF_HUB_OFFLINE"] = "1"
    from fuzzing.inputs import scratch
    from fuzzing.targets import TARGETS

    from freerun.environment import environment

    results: dict[str, Any] = {}
    for name in asked.targets or TARGETS:
        began, where = time.monotonic(), environment()
        count = tried(TARGETS[name], asked.inputs, asked.seed)
        seconds = round(time.monotonic() - began, 1)
        results[name] = {"inputs": count, "seconds": seconds, "date": where["started"][:10], "commit": where["commit"]}
        sys.stderr.write(f"{name}: {count} inputs, {seconds} s\n")
    if not asked.targets:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(results, indent=1) + "\n")
    shutil.rmtree(scratch())
    return 0


if __name__ == "__main__":
    sys.exit(main())
