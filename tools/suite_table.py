"""Write `docs/d4rl-mini.md` from `docs/d4rl-mini.json`.

    .venv/bin/python tools/suite_table.py          write the page
    .venv/bin/python tools/suite_table.py --check  exit 1 if it is not what would be written

The numbers are `results.json` of `freerun eval --suite d4rl-mini`.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = (ROOT / "docs" / f"d4rl-mini.{suffix}" for suffix in ("json", "md"))
HEADER = """\
<!-- Written by tools/suite_table.py from docs/d4rl-mini.json; do not edit. -->
# D4RL's protocol on self-made data

`freerun eval --suite d4rl-mini`: every method with one setting for all data sets of an environment (see
[`freerun/suite.py`](../freerun/suite.py)), nothing but recorded episodes, a fixed number of updates, and the last policy
judged by 20 episodes. Scores are normalised: 0 is a random policy, 100 the last policy of the SAC run that made the data. Mean
over seeds ± their deviation, in brackets how many seeds where not all were run. `data` is the score of who acted in the data.
These are not D4RL's files: compare methods, not numbers.
"""


def page(data: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    return HEADER + "".join(section(env, {n: one for n, one in data.items() if n.startswith(f"{env}/")}) for env in envs(data))


def envs(data: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in data))


def section(env: str, data: dict[str, Any]) -> str:
    """An environment's table, and what it took."""
    methods = list(dict.fromkeys(method for entry in data.values() for method in entry if method != "data"))
    seeds = max(len(entry.get(method, {})) for entry in data.values() for method in methods)
    rows = [
        f"| {name.partition('/')[2]} | {entry['data']['score']:.1f} | "
        f"{' | '.join(cell(entry.get(method, {}), seeds) for method in methods)} |\n"
        for name, entry in data.items()
    ]
    means = [fmean(run["score"] for entry in data.values() for run in entry.get(method, {}).values()) for method in methods]
    average = f"{fmean(entry['data']['score'] for entry in data.values()):.1f} | {' | '.join(f'{m:.1f}' for m in means)}"
    runs = [run for entry in data.values() for method in methods for run in entry.get(method, {}).values()]
    head = f"| data set | data | {' | '.join(f'`{m}`' for m in methods)} |\n|---|{'---:|' * (len(methods) + 1)}\n"
    updates = " or ".join(sorted({f"{run['updates']:,}" for run in runs}))
    told = f"{updates} updates, {seeds} seeds, {sum(run['cpu'] for run in runs) / 60:.0f} minutes of one core in all."
    return f"\n## {env}\n\n{told}\n\n{head}{''.join(rows)}| average | {average} |\n"


def cell(runs: dict[str, Any], seeds: int) -> str:
    """Mean and deviation over seeds; empty where nothing was run."""
    scores = [run["score"] for run in runs.values()]
    if not scores:
        return ""
    spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{fmean(scores):.1f}{spread}{f' ({len(scores)})' if len(scores) < seeds else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    if not DATA.exists():
        return 0  # there is no page before there are numbers
    wanted = page(json.loads(DATA.read_text(encoding="utf-8")))
    if check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        sys.stderr.write(f"{PAGE.name} is not current: run tools/suite_table.py\n")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
