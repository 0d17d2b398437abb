"""Write `docs/control-learning.md` from `docs/control-learning.json`.

    .venv/bin/python tools/control_table.py          write the page
    .venv/bin/python tools/control_table.py --check  exit 1 if it is not what would be written

The numbers come from `bench/control_learning.py`.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from freerun.claims.verdict import interval

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = (ROOT / "docs" / f"control-learning.{suffix}" for suffix in ("json", "md"))
HEADER = """\
<!-- Written by tools/control_table.py from docs/control-learning.json; do not edit. -->
# What recipes of control learn

Each recipe over several seeds, beside Stable-Baselines3 (online) and d3rlpy (recorded data) with the same budget, widths,
learning rates, batches and data (see [`bench/control_learning.py`](../bench/control_learning.py)). One thread each, processor
time. Policies are judged by the mean return of 20 episodes of the actions that they think best; scores are normalised, 0 is
random and 100 the policy that made the expert data. Intervals are 95%, Student's t over seeds: of three seeds they are wide.
"""


def page(data: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    head = "| recipe | budget | system | mean | 95% interval | by seed | seconds |\n|---|---|---|---:|---:|---|---:|\n"
    return HEADER + "\n" + head + "".join(rows(name, one) for name, one in data.items()) + curves(data)


def rows(name: str, one: dict[str, Any]) -> str:
    """A line for each system."""
    lines = []
    for system, runs in one["runs"].items():
        metric = "score" if all("score" in run for run in runs.values()) else "return"
        values = [run[metric] for _, run in sorted(runs.items(), key=lambda pair: int(pair[0]))]
        spread = interval(values) if len(values) > 1 else None
        between = f"{spread.low:.1f} to {spread.high:.1f}" if spread else ""
        seconds = fmean(run["cpu"] for run in runs.values())
        lines.append(
            f"| `{name}` | {budget(one)} | {system} | {fmean(values):.1f}{' score' if metric == 'score' else ''} | {between} | "
            f"{', '.join(f'{value:.1f}' for value in values)} | {seconds:.0f} |\n"
        )
    return "".join(lines)


def budget(one: dict[str, Any]) -> str:
    return f"{one['env_steps']:,} steps" if one["env_steps"] else f"{one['updates']:,} updates"


def curves(data: dict[str, Any]) -> str:
    """Mean returns on the way, over our own seeds."""
    lines = []
    for name, one in data.items():
        ways = [run["curves"]["return"] for run in one["runs"].get("Freerun", {}).values()]
        starts = [run["start"] for run in one["runs"].get("Freerun", {}).values()]
        ends = [run["return"] for run in one["runs"].get("Freerun", {}).values()]
        points = [fmean(starts), *(fmean(point) for point in zip(*ways, strict=False)), fmean(ends)]
        lines.append(f"| `{name}` | {' | '.join(f'{point:.0f}' for point in points)} |\n")
    shares = [f"{10 * i}%" for i in range(11)]
    head = f"| recipe | {' | '.join(shares)} |\n|---|{'---:|' * len(shares)}\n"
    return "\nReturns on the way, mean over seeds, by share of the budget:\n\n" + head + "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not DATA.exists():
        return 0  # there is no page before there are numbers
    wanted = page(json.loads(DATA.read_text(encoding="utf-8")))
    if parser.parse_args().check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        sys.stderr.write(f"{PAGE.name} is not current: run tools/control_table.py\n")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
