"""Write `docs/control-learning.md` and its picture from `docs/control-learning.json`.

    .venv/bin/python tools/control_table.py          write both
    .venv/bin/python tools/control_table.py --check  exit 1 if either is not what would be written

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
DATA, PAGE, PICTURE = (ROOT / "docs" / f"control-learning.{suffix}" for suffix in ("json", "md", "svg"))
HEADER = """\
<!-- Written by tools/control_table.py from docs/control-learning.json; do not edit. -->
# What recipes of control learn

Each recipe over several seeds, beside Stable-Baselines3 (online) and d3rlpy (recorded data) with the same budget, widths,
learning rates, batches and data (see [`bench/control_learning.py`](../bench/control_learning.py)). One thread each, processor
time. Policies are judged by the mean return of 20 episodes of the actions that they think best; scores are normalised, 0 is
random and 100 the policy that made the expert data. Intervals are 95%, Student's t over seeds: of three seeds they are wide.

![Returns on the way, by recipe and system](control-learning.svg)
"""
WIDE, HIGH, GAP, COLUMNS = 220, 120, 46, 3
COLOURS = {"Freerun": "#1f5fbf", "Stable-Baselines3": "#d9731a", "d3rlpy": "#d9731a"}


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


def way(run: dict[str, Any]) -> list[float]:
    """Returns at the start, where it is known, after each tenth of the budget, and at the end."""
    return [*([run["start"]] if "start" in run else []), *run["curves"]["return"], run["return"]]


def curves(data: dict[str, Any]) -> str:
    """Mean returns on the way, over seeds."""
    lines = []
    for name, one in data.items():
        for system, runs in one["runs"].items():
            points = [f"{fmean(point):.0f}" for point in zip(*map(way, runs.values()), strict=True)]
            cells = [""] * (11 - len(points)) + points
            lines.append(f"| `{name}` | {system} | {' | '.join(cells)} |\n")
    shares = [f"{10 * i}%" for i in range(11)]
    head = f"| recipe | system | {' | '.join(shares)} |\n|---|---|{'---:|' * len(shares)}\n"
    return "\nReturns on the way, mean over seeds, by share of the budget:\n\n" + head + "".join(lines)


def picture(data: dict[str, Any]) -> str:
    """A panel for each recipe: the mean over seeds as a line, from the lowest to the highest seed as a band."""
    lines = -(-len(data) // COLUMNS)
    width, height = COLUMNS * (WIDE + GAP) + 14, lines * (HIGH + GAP) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (system, colour) in enumerate((("Freerun", COLOURS["Freerun"]), ("Stable-Baselines3 or d3rlpy", COLOURS["d3rlpy"]))):
        parts.append(f'<rect x="{GAP + 90 * i}" y="9" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{GAP + 90 * i + 17}" y="19">{system}</text>')
    for i, (name, one) in enumerate(data.items()):
        parts += panel(name, one, GAP + i % COLUMNS * (WIDE + GAP), 52 + i // COLUMNS * (HIGH + GAP))
    return "\n".join([*parts, "</svg>\n"])


def panel(name: str, one: dict[str, Any], left: float, top: float) -> list[str]:
    """One recipe's curves with the largest and the least return beside them."""
    ways = {system: [way(run) for run in runs.values()] for system, runs in one["runs"].items()}
    everything = [value for runs in ways.values() for run in runs for value in run]
    low, high = min(everything), max(everything)

    def at(tenth: int, value: float) -> str:
        return f"{left + WIDE * tenth / 10:.1f},{top + HIGH * (high - value) / (high - low):.1f}"

    parts = [
        f'<text x="{left}" y="{top - 7}" font-weight="bold">{name}</text>',
        f'<text x="{left + WIDE}" y="{top - 7}" text-anchor="end" fill="#666">{budget(one)}</text>',
        f'<rect x="{left}" y="{top}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#bbb"/>',
        f'<text x="{left - 4}" y="{top + 9}" text-anchor="end" fill="#666">{high:.0f}</text>',
        f'<text x="{left - 4}" y="{top + HIGH}" text-anchor="end" fill="#666">{low:.0f}</text>',
    ]
    for system, runs in ways.items():
        points = [(11 - len(runs[0]) + i, values) for i, values in enumerate(zip(*runs, strict=True))]
        band = [at(i, max(values)) for i, values in points] + [at(i, min(values)) for i, values in reversed(points)]
        line = " ".join(at(i, fmean(values)) for i, values in points)
        parts.append(f'<polygon points="{" ".join(band)}" fill="{COLOURS[system]}" fill-opacity="0.15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[system]}" stroke-width="1.6"/>')
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not DATA.exists():
        return 0  # there is no page before there are numbers
    data = json.loads(DATA.read_text(encoding="utf-8"))
    wanted = {PAGE: page(data), PICTURE: picture(data)}
    if parser.parse_args().check:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        if stale:
            sys.stderr.write(f"{', '.join(stale)}: not current, run tools/control_table.py\n")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
