"""Write the measured part of `docs/guarantees.md` from `docs/guarantees/*.json`.

    .venv/bin/python tools/faults_table.py          write it
    .venv/bin/python tools/faults_table.py --check  exit 1 if it is not what would be written

| file | written by |
|---|---|
| `faults.json` | `freerun chaos tiny-faults --out docs/guarantees/faults.json` |
| `fuzz.json` | `python tools/fuzz.py` (`make fuzz`) |
| `journal.json` | `python bench/journal_overhead.py --json docs/guarantees/journal.json` |
| `soak.json` | `python tools/soak.py` (`make soak`) |
| `resume.json` | `python bench/peers/kill_and_resume.py --json docs/guarantees/resume.json` |
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA = ROOT / "docs" / "guarantees.md", ROOT / "docs" / "guarantees"
BEGIN, END = "<!-- measured: written by tools/faults_table.py from docs/guarantees -->\n", "<!-- end of measured -->\n"


FAULTS = (
    "*Healed*: the run went on by itself; *resumed*: after `freerun resume`; *finished*: the fault struck at its end. "
    "*Lost*, *repeated*: items that were trained never or twice, generated again after they were finished, or trained on "
    "something else than was finished; *leaked*: processes, shared memory, sockets and files that were left; *silent*: "
    "ends that did not say how to go on. Seconds are the median, in brackets the largest: from the fault to the record of "
    "the death (for a run that ended: until everything of it was gone), and from the fault to the successor in its place, "
    "or to the first step of the resumed run. A fault whose moment did not come is not counted."
)
JOURNAL = "`bench/journal_overhead.py`: shares of the time of the steps of one run, in which both are measured."


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def seconds(times: dict[str, Any] | None) -> str:
    """Median and largest."""
    return f"{times['median']:.1f} ({times['max']:.1f})" if times else ""


def faults(data: dict[str, Any]) -> str:
    """What was done to runs and what came of it."""
    names = ("injected", "healed", "resumed", "finished", "lost", "repeated", "leaked", "silent")
    text = (
        f"\n## Faults\n\n{data['cycles']} cycles of `freerun chaos {data['recipe']} --seed {data['seed']}` in {data['runs']} "
        f"runs and {data['attempts']} attempts. {FAULTS}\n\n"
    )
    text += row("fault", "moment", *names, "notice, s", "heal, s") + row("---", "---", *["---:"] * (len(names) + 2))
    for one in data["faults"]:
        if one["injected"]:
            counts = [one[name] for name in names]
            fault = f"{one['action']} {one['target']}"
            text += row(fault, one["moment"], *counts, seconds(one.get("notice")), seconds(one.get("heal")))
    sums = [sum(one[name] for one in data["faults"]) for name in names[:4]]
    ends = [len(data["lost"]), len(data["repeated"]) + len(data["unlike"]), len(data["leaked"])]
    text += row("**all**", "", *sums, *ends, sum(one["silent"] for one in data["faults"]), "", "")
    text += "\nTime to notice and to heal, by who was hit:\n\n" + row(
        "executor", "killed: notice, s", "heal, s", "frozen: notice, s", "heal, s"
    )
    text += row("---", *["---:"] * 4)
    by = {(one["target"], one["action"]): one for one in data["times"]}
    for target in dict.fromkeys(target for target, _ in by):
        cells = [
            seconds(by.get((target, action), {}).get(what)) for action in ("kill", "freeze") for what in ("notice", "heal")
        ]
        text += row(target, *cells)
    return text + (
        f"\n{data['cpu']}, {data['cores_allowed']} core(s) shared with other work, Python {data['python']}, torch "
        f"{data['packages'].get('torch')}, torchmonarch {data['packages'].get('torchmonarch')}, commit {data['commit'][:12]}, "
        f"{data['started'][:10]}. Executors were forked from a process that had imported everything (`--placement.preload "
        "true`), as the harness has it; without that each start takes the seconds that importing torch and transformers does.\n"
    )


def fuzz(data: dict[str, Any]) -> str:
    """How many inputs readers were given."""
    total = sum(one["inputs"] for one in data.values())
    text = (
        f"\n## Inputs tried\n\n{total:,} inputs of `tools/fuzz.py`, each of which was read, or refused by an error of ours.\n\n"
    )
    text += row("reader", "inputs", "date", "commit") + row("---", "---:", "---", "---")
    return text + "".join(row(name, f"{one['inputs']:,}", one["date"], one["commit"][:12]) for name, one in data.items())


def journal(data: list[dict[str, Any]]) -> str:
    """What the journal and checkpoints cost."""
    text = f"\n## What the journal and checkpoints cost\n\n{JOURNAL}\n\n"
    text += row("recipe", "steps", "s/step", "groups/step", "journal", "checkpoints", "every", "all")
    text += row("---", *["---:"] * 7)
    for one in data:
        parts = {label: part["seconds"] / one["seconds"] for label, part in one["parts"].items()}
        saved = sum(share for label, share in parts.items() if label.startswith("checkpoint"))
        text += row(
            one["recipe"],
            one["steps"],
            f"{one['seconds'] / one['steps']:.2f}",
            one["groups"],
            f"{sum(parts.values()) - saved:.2%}",
            f"{saved:.2%}",
            f"{one['changes']['control.checkpoint_every']} steps",
            f"**{one['share']:.2%}**",
        )
    return text


def soak(data: dict[str, Any]) -> str:
    """Memory over time."""
    text = (
        f"\n## Memory\n\n`freerun run {data['recipe']}` for {data['minutes']:g} minutes, {data['steps']} steps: memory of each "
        "process in MB, anonymous and its share of what is shared, and its file descriptors. Growth is the slope of a line "
        "through the second half.\n\n"
    )
    text += row("process", "at 1/4", "at 1/2", "at the end", "growth, MB/hour", "descriptors, first and last")
    text += row("---", *["---:"] * 5)
    for name, one in data["processes"].items():
        text += row(
            name,
            *(f"{one[key]:.0f}" for key in ("quarter", "half", "end")),
            f"{one['growth']:+.1f}",
            f"{one['descriptors'][0]}, {one['descriptors'][1]}",
        )
    return text


def resume(data: dict[str, Any]) -> str:
    """The same kill test on another system."""
    text = f"\n## The same test on TRL\n\n{data['about']}\n\n"
    text += row("system", "kills", "groups generated again", "never trained", "trained twice", "loss and weights as unbroken")
    text += row("---", *["---:"] * 4, "---")
    for name, one in data["systems"].items():
        text += row(name, one["kills"], one["again"], one["never"], one["twice"], one["equal"])
    return text


SECTIONS = {"faults": faults, "fuzz": fuzz, "journal": journal, "soak": soak, "resume": resume}


def page(text: str) -> str:
    """The page with its measured part as the files say."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [
        make(json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")))
        for name, make in SECTIONS.items()
        if (DATA / f"{name}.json").exists()
    ]
    return before + BEGIN + "".join(parts) + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    asked = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text)
    if asked.check:
        if text != wanted:
            sys.stderr.write("guarantees.md is not current: run tools/faults_table.py\n")
        return int(text != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
