"""Write `docs/staleness-study.md` and its picture from `docs/staleness-study.json`.

    .venv/bin/python tools/staleness_table.py          write both
    .venv/bin/python tools/staleness_table.py --check  exit 1 if either is not what would be written

The numbers come from `python -m freerun.claims.staleness`.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from freerun.claims.staleness import BEARABLE, holds_to, losses
from freerun.claims.verdict import interval

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE, PICTURE = (ROOT / "docs" / f"staleness-study.{suffix}" for suffix in ("json", "md", "svg"))
HEADER = """\
<!-- Written by tools/staleness_table.py from docs/staleness-study.json; do not edit. -->
# What staleness costs

Every method at its defaults on the same small job, with every token exactly `lag` updates old. The job: reverse words of five
letters, a transformer of 0.1M parameters, imitation until a third of the held-out words are right, then 200 steps of 16 prompts
with 8 responses each, one optimiser step per batch, a learning rate that was tuned for REINFORCE at lag 0 and is the same for
all (see [`freerun/claims/tiny.py`](../freerun/claims/tiny.py)). Everything goes through the real engine, in one process and a
fixed order.

One job at one learning rate says which corrections do something, not which method is best: a method that moves slowly looks
robust, and one with other defaults might do better.

![Held-out accuracy by method and lag](staleness-study.svg)
"""
HOLDING = f"""\
Accuracy lost against lag 0: the difference seed by seed, its mean ± half of the 95% interval. A method *holds to* the largest
lag at which, and before which, it loses {BEARABLE:g} at most on average. No recipe asks for a larger lag than its method holds
to; a test sees to that.
"""
WIDE, HIGH, LEFT, TOP = 92, 34, 150, 58


def methods(data: dict[str, Any]) -> list[str]:
    """The methods, best at the largest lag first."""
    return sorted(data, key=lambda name: -fmean(values(data[name]["cells"], lags(data)[-1], "accuracy")))


def lags(data: dict[str, Any]) -> list[str]:
    """Every lag that any method was run at, ascending."""
    return sorted({lag for one in data.values() for lag in one["cells"]}, key=int)


def values(cells: dict[str, Any], lag: str, metric: str) -> list[float]:
    """A metric of the runs at a lag, seed by seed; those that have none are left out."""
    return [run[metric] for run in cells.get(lag, {}).values() if run[metric] is not None]


def table(data: dict[str, Any], metric: str, form: str) -> str:
    """Methods by lags: mean and half of the 95% interval."""
    rows = []
    for name in methods(data):
        row = [shown(values(data[name]["cells"], lag, metric), form) for lag in lags(data)]
        rows.append(f"| [`{name}`](algorithms.md#{name}) | {' | '.join(row)} |\n")
    head = f"| method | {' | '.join(f'lag {lag}' for lag in lags(data))} |\n|---|{'---:|' * len(lags(data))}\n"
    return head + "".join(rows)


def holding(data: dict[str, Any]) -> str:
    """What each lag costs against lag 0, and how far that is bearable."""
    rows, later = [], lags(data)[1:]
    for name in sorted(methods(data), key=lambda name: -holds_to(data[name]["cells"])):
        cells = data[name]["cells"]
        costs = [shown(losses(cells, lag), "+.2f") if lag in cells else "" for lag in later]
        rows.append(f"| [`{name}`](algorithms.md#{name}) | {holds_to(cells)} | {' | '.join(costs)} |\n")
    head = f"| method | holds to | {' | '.join(f'lag {lag}' for lag in later)} |\n|---|---:|{'---:|' * len(later)}\n"
    return head + "".join(rows)


def shown(found: list[float], form: str) -> str:
    if not found:
        return ""
    if len(found) < 2:
        return format(found[0], form)
    spread = interval(found)
    return f"{spread.mean:{form}} ± {spread.high - spread.mean:{form.lstrip('+')}}"


def page(data: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    seeds = max(len(runs) for one in data.values() for runs in one["cells"].values())
    runs = [
        f"| `{name}` | {one['minutes']:g} | {one['date']} | {one['commit'][:12]} | {versions(one)} |\n"
        for name, one in ((name, data[name]) for name in methods(data))
    ]
    start = fmean(run["start"] for one in data.values() for runs in one["cells"].values() for run in runs.values())
    return (
        HEADER
        + f"\n## Held-out accuracy after 200 steps\n\nGreedy answers to 512 words; {start:.2f} before RL. Mean of {seeds} "
        f"seeds, ± half of the 95% interval (Student's t).\n\n{table(data, 'accuracy', '.2f')}"
        f"\n## Which lag each holds to\n\n{HOLDING}\n{holding(data)}"
        f"\n## Reward of the last 20 steps\n\nOf sampled responses, by a policy that is `lag` updates old.\n\n"
        f"{table(data, 'reward', '.2f')}"
        f"\n## Effective sample size\n\nOf the ratios current to behaviour over tokens, last 20 steps: 1 is on-policy.\n\n"
        f"{table(data, 'ess', '.2f')}"
        "\n## How it was run\n\n```sh\npython -m freerun.claims.staleness\npython tools/staleness_table.py\n```\n\n"
        "| method | minutes of one core | date | commit | versions |\n|---|---:|---|---|---|\n" + "".join(runs)
    )


def versions(one: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in one["versions"].items())


def picture(data: dict[str, Any]) -> str:
    """Accuracy as a map of colours, methods by lags."""
    names, columns = methods(data), lags(data)
    width, height = LEFT + WIDE * len(columns) + 12, TOP + HIGH * len(names) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="22" font-size="15" fill="#222222">Held-out accuracy after 200 steps, by lag</text>',
    ]
    parts += [
        f'<text x="{LEFT + WIDE * (i + 0.5):g}" y="{TOP - 10}" text-anchor="middle" fill="#444444">lag {lag}</text>'
        for i, lag in enumerate(columns)
    ]
    for row, name in enumerate(names):
        y = TOP + HIGH * row
        parts.append(f'<text x="{LEFT - 10}" y="{y + 22}" text-anchor="end" fill="#222222">{name}</text>')
        for i, lag in enumerate(columns):
            found = values(data[name]["cells"], lag, "accuracy")
            if found:
                parts += square(LEFT + WIDE * i, y, found)
    parts.append(
        f'<text x="{LEFT}" y="{height - 12}" font-size="11" fill="#666666">mean; below it the worst and the best seed</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def square(x: float, y: float, found: list[float]) -> list[str]:
    """One cell: its colour runs from pale to deep blue with the mean."""
    mean = fmean(found)
    ink = "#ffffff" if mean > 0.55 else "#1b2a41"
    pale, deep = (239, 244, 250), (17, 72, 134)
    shade = ",".join(str(round(a + (b - a) * mean)) for a, b in zip(pale, deep, strict=True))
    middle = x + WIDE / 2
    return [
        f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{WIDE - 2}" height="{HIGH - 2}" rx="3" fill="rgb({shade})"/>',
        f'<text x="{middle:g}" y="{y + 16:g}" text-anchor="middle" fill="{ink}">{mean:.2f}</text>',
        f'<text x="{middle:g}" y="{y + 28:g}" text-anchor="middle" font-size="10" fill="{ink}">'
        f"{min(found):.2f} to {max(found):.2f}</text>",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    asked = parser.parse_args()
    if not DATA.exists():
        return 0
    data = json.loads(DATA.read_text(encoding="utf-8"))
    wanted = {PAGE: page(data), PICTURE: picture(data)}
    if asked.check:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            sys.stderr.write(f"{path.name} is not current: run tools/staleness_table.py\n")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
