"""Run for long and record the memory of every process in `docs/guarantees/soak.json`.

    .venv/bin/python tools/soak.py                       tiny-addition for 20 minutes
    .venv/bin/python tools/soak.py --minutes 5 --recipe tiny-faults [--KEY VALUE ...]

Every executor has a process of its own, on Linux. Each process's own memory (anonymous, and its share of shared memory; mapped
files are left out, because a share of them depends on who else maps them) and open files are read every five seconds. Exit
status 1 if a process grew by more than a tenth in the second half.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "guarantees" / "soak.json"
PERIOD = 5.0
MARK = "FREERUN_SOAK"


def processes(mark: str) -> dict[str, int]:
    """Living processes whose environment has the mark, by name."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[name(folder)] = int(folder.name)
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def name(folder: Path) -> str:
    comm = (folder / "comm").read_text().strip()
    if b"guardian.py" in (folder / "cmdline").read_bytes():
        return "guardian"
    return "controller" if comm.startswith("python") else comm


def look(pid: int) -> tuple[float, int]:
    """Megabytes and open files of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kinds = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith("Pss_")}
    return (kinds["Pss_Anon:"] + kinds["Pss_Shmem:"]) / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through `points` that fits them best."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return over / sum((x - mean_x) ** 2 for x, _ in points)


def watched(command: list[str], minutes: float) -> dict[str, list[tuple[float, float, int]]]:
    """Run `command` for so long; by process: seconds, megabytes and open files."""
    mark = str(os.getpid())
    run = subprocess.Popen(command, env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    seen: dict[str, list[tuple[float, float, int]]] = {}
    began = time.monotonic()
    try:
        while (now := time.monotonic() - began) < 60 * minutes and run.poll() is None:
            for who, pid in processes(mark).items():
                try:
                    seen.setdefault(who, []).append((now, *look(pid)))
                except (OSError, KeyError):
                    continue  # ended meanwhile
            time.sleep(PERIOD)
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=120)
    finally:
        run.kill()
    return seen


def figures(points: list[tuple[float, float, int]]) -> dict[str, Any]:
    at = [points[len(points) * part // 4] for part in (1, 2)]
    late = [(seconds, megabytes) for seconds, megabytes, _ in points[len(points) // 2 :]]
    return {
        "quarter": round(at[0][1], 1),
        "half": round(at[1][1], 1),
        "end": round(points[-1][1], 1),
        "growth": round(3600 * slope(late), 2),
        "descriptors": [points[len(points) // 10][2], points[-1][2]],
        "samples": len(points),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--recipe", default="tiny-addition")
    parser.add_argument("--out", type=Path, default=OUT)
    asked, rest = parser.parse_known_args()
    from freerun.environment import environment

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        words = ["run", asked.recipe, "--dir", str(directory), "--plain", "--placement.kind", "monarch"]
        words += ["--control.steps", "1000000", "--control.checkpoint_every", "50", *rest]
        seen = watched([sys.executable, "-m", "freerun.cli", *words], asked.minutes)
        steps = (directory / "metrics.jsonl").read_text().count("\n")
        logs = {path.name: path.stat().st_size for path in sorted(directory.glob("*.jsonl"))}
    where = environment()
    kept = {who: figures(points) for who, points in sorted(seen.items()) if len(points) >= 20}
    result = {"recipe": asked.recipe, "overrides": rest, "minutes": asked.minutes, "steps": steps, "log_bytes": logs}
    result |= {name: where[name] for name in ("commit", "started", "cpu", "python", "packages")}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**result, "processes": kept}, indent=1) + "\n")
    grown = [who for who, one in kept.items() if one["growth"] * asked.minutes / 120 > one["half"] / 10]
    for who, one in kept.items():
        sys.stdout.write(f"{who:<12}{one['half']:>8.1f} MB{one['growth']:>+8.1f} MB/hour, files {one['descriptors']}\n")
    return int(bool(grown) or not kept)


if __name__ == "__main__":
    sys.exit(main())
