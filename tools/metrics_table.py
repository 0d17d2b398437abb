"""Write `docs/metrics.md` from `freerun.metrics.METRICS`.

.venv/bin/python tools/metrics_table.py          write the page
.venv/bin/python tools/metrics_table.py --check  exit 1 if the page is not what would be written
"""

import argparse
import sys
from pathlib import Path

from freerun.metrics import METRICS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
HEADER = """\
<!-- Written by tools/metrics_table.py from freerun/metrics.py; do not edit. -->
# Metrics

What `metrics.jsonl` holds for each step, and what the report, TensorBoard and Weights & Biases show under the same names. A
part in angle brackets stands for any name: `loss/policy` is a `loss/<term>`. Shares lie between 0 and 1. A histogram is a JSON
object from bucket to count. Numbers that are not finite are the strings `nan`, `inf` and `-inf`. `heldout/<split>` is in
`evals.jsonl`.
"""


def page() -> str:
    """The whole page as Markdown: a table per group of names, then one of the names that have no group."""
    groups: dict[str, list[str]] = {}
    for name, (unit, meaning) in METRICS.items():
        group = name.partition("/")[0] if "/" in name else "others"
        groups.setdefault(group, []).append(f"| `{name}` | {unit} | {meaning.replace('|', '&#124;')} |\n")
    groups["others"] = groups.pop("others")
    head = "| name | unit | meaning |\n|---|---|---|\n"
    return HEADER + "".join(f"\n## {group}\n\n{head}{''.join(rows)}" for group, rows in groups.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        if not current:
            sys.stderr.write(f"{PAGE.name} is not current: run tools/metrics_table.py\n")
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
