"""What came of it, as JSON and as a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from freerun.chaos.faults import ANY
from freerun.chaos.harness import Cycle, RunResult
from freerun.environment import environment

COUNTS = ("injected", "healed", "resumed", "finished", "lost", "repeated", "leaked", "silent")


def summary(results: Sequence[RunResult], about: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able. A loss or a repetition counts for every fault of the run in which it happened."""
    kinds: dict[tuple[str, str, str], list[tuple[Cycle, RunResult]]] = {}
    for result in results:
        for cycle in result.cycles:
            fault = cycle.fault
            kinds.setdefault((fault.target, fault.action, fault.moment), []).append((cycle, result))
    faults = [
        {
            "target": target,
            "action": action,
            "moment": moment,
            **_counts(found),
            **_times(cycle for cycle, _ in found if cycle.outcome != "missed"),
        }
        for (target, action, moment), found in sorted(kinds.items())
    ]
    cycles = [cycle for result in results for cycle in result.cycles if cycle.outcome != "missed"]
    kept = ("python", "platform", "cpu", "cores_allowed", "packages", "commit")
    where = environment()
    return {
        **about,
        **{name: where[name] for name in kept},
        "started": where["started"],
        "runs": len(results),
        "attempts": sum(result.attempts for result in results),
        "seconds": round(sum(result.seconds for result in results), 1),
        "cycles": len(cycles),
        "missed": sum(cycle.outcome == "missed" for result in results for cycle in result.cycles),
        "lost": [sentence for result in results for sentence in result.lost],
        "repeated": [sentence for result in results for sentence in result.repeated],
        "unlike": [sentence for result in results for sentence in result.unlike],
        "leaked": [what for cycle in cycles for what in cycle.leaked],
        "faults": faults,
        "times": _by_executor(cycles),
    }


def _counts(found: Iterable[tuple[Cycle, RunResult]]) -> dict[str, int]:
    made = [(cycle, result) for cycle, result in found if cycle.outcome != "missed"]
    return {
        "injected": len(made),
        **{name: sum(cycle.outcome == name for cycle, _ in made) for name in ("healed", "resumed", "finished")},
        "lost": sum(len(result.lost) for _, result in made),
        "repeated": sum(len(result.repeated) + len(result.unlike) for _, result in made),
        "leaked": sum(len(cycle.leaked) for cycle, _ in made),
        "silent": sum(cycle.silent for cycle, _ in made),
    }


def _times(cycles: Iterable[Cycle]) -> dict[str, dict[str, float]]:
    """Median and maximum of the seconds to notice and to heal, of those cycles that have them."""
    cycles = list(cycles)
    return {
        name: {"number": len(values), "median": round(median(values), 3), "max": round(max(values), 3)}
        for name, values in (
            ("notice", [c.noticed for c in cycles if not math.isnan(c.noticed)]),
            ("heal", [c.healed for c in cycles if not math.isnan(c.healed)]),
        )
        if values
    }


def _by_executor(cycles: Sequence[Cycle]) -> list[dict[str, Any]]:
    """Times to notice and to heal, by who was killed or frozen."""
    kinds = sorted({(c.fault.target, c.fault.action) for c in cycles if c.fault.action in ("kill", "freeze")})
    return [
        {
            "target": target,
            "action": action,
            **_times(c for c in cycles if (c.fault.target, c.fault.action) == (target, action)),
        }
        for target, action in kinds
    ]


def table(data: Mapping[str, Any]) -> Table:
    """A row for each fault, and the sums, in 80 columns. `wrong` is all that must not happen; `verdict` says what did."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    shown.add_column("fault", overflow="fold")
    for name in ("hit", "healed", "resumed", "ended", "wrong", "notice", "heal"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in data["faults"]:
        moment = "" if row["moment"] == ANY else f", {row['moment']}"
        times = [f"{row[name]['median']:.1f}s" if name in row else "" for name in ("notice", "heal")]
        wrong = sum(row[name] for name in COUNTS[4:])
        shown.add_row(f"{row['action']} {row['target']}{moment}", *(str(row[name]) for name in COUNTS[:4]), str(wrong), *times)
    sums = [str(sum(row[name] for row in data["faults"])) for name in COUNTS[:4]]
    shown.add_row("all", *sums, str(sum(found(data).values())), "", "", style="bold")
    return shown


def found(data: Mapping[str, Any]) -> dict[str, int]:
    """How often each thing happened that must not."""
    repeated = len(data["repeated"]) + len(data["unlike"])
    silent = sum(row["silent"] for row in data["faults"])
    return {"lost": len(data["lost"]), "repeated": repeated, "leaked": len(data["leaked"]), "silent": silent}


def verdict(data: Mapping[str, Any]) -> str:
    """One line."""
    return f"{data['cycles']} cycles in {data['runs']} runs: " + ", ".join(f"{n} {what}" for what, n in found(data).items())


def write(data: Mapping[str, Any], path: Path) -> None:
    """As JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.new")
    attempt.write_text(json.dumps(data, indent=1) + "\n")
    attempt.replace(path)
