"""The same kill test on TRL's resume and on Freerun's: the tiny job is killed with SIGKILL at random moments of its training
and resumed each time, to its end. Then its log, which survives kills, says what became of every group of prompts.

    python bench/peers/kill_and_resume.py --peer-python .venv-peers/bin/python [--kills 8] [--steps 40] [--every 5]

- generated again   groups that had been generated and scored in full, and were generated once more by a later attempt
- never, twice      prompts that the surviving steps trained on never, or more than once, against the unbroken run's
- as unbroken       whether every surviving step left what it left in the unbroken run: the weights (TRL), the losses, gradient
                    norms, ratios and rewards (Freerun)
- failed            resumes that raised, after which the newest checkpoint was removed by hand

Every prompt of the job is another one. Freerun runs free (lag 1, its executors on threads) and deterministic.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ABOUT = (
    "`bench/peers/kill_and_resume.py`: the tiny job of `bench/peers`, {steps} steps of 8 groups with a checkpoint every "
    "{every}, is killed with SIGKILL at random moments of its training and resumed each time. Groups that were generated "
    "again after they had been generated and scored in full; prompts that the surviving steps trained on never or twice; "
    "whether every surviving step left what it left in an unbroken run, bit for bit."
)


def rows(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []


def attempt(command: list[str], folder: Path, pause: float | None) -> int:
    """Run the worker; if `pause` is given, kill it so many seconds after it wrote its first line. Its exit status."""
    before = len(rows(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("a") as output:
        worker = subprocess.Popen([*command, "--folder", str(folder)], stdout=output, stderr=output, env=environment)
        while pause is not None and worker.poll() is None and len(rows(folder)) == before:
            time.sleep(0.05)
        try:
            return worker.wait(timeout=pause)
        except subprocess.TimeoutExpired:
            worker.kill()
            return worker.wait()


def surviving(folder: Path) -> dict[int, dict[str, Any]]:
    """Of each step, the last time that it was made, with the prompts that it trained on."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows(folder):
        if "step" in row:
            found[row["step"]] = row
        elif "also" in row:
            found[row["of"]]["trained"].append(row["also"])
    return found


def test(command: list[str], kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume, and compare with the unbroken run."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, broken = Path(scratch) / "whole", Path(scratch) / "broken"
        for folder in (whole, broken):
            folder.mkdir()
        began = time.monotonic()
        if attempt(command, whole, None) != 0:
            raise SystemExit((whole / "output.txt").read_text()[-3000:])
        # Half of the time is the start. So that attempts get as far as the kills allow on average, which is to the end.
        most = (time.monotonic() - began) / max(1, kills)
        done = failed = 0
        while True:
            status = attempt(command, broken, draw.uniform(0.0, most) if done < kills else None)
            if status == 0:
                break
            done += status == -signal.SIGKILL
            if status != -signal.SIGKILL:
                failed += 1
                newest = sorted((broken / "out").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
                if not newest or failed > kills:
                    raise SystemExit((broken / "output.txt").read_text()[-3000:])
                shutil.rmtree(newest[-1])
        return figures(whole, broken) | {"kills": done, "failed": failed}


def figures(whole: Path, broken: Path) -> dict[str, Any]:
    expected, found = surviving(whole), surviving(broken)
    order = [prompt for step in sorted(expected) for prompt in expected[step]["trained"]]
    trained = Counter(prompt for row in found.values() for prompt in row["trained"])
    attempts: dict[str, set[int]] = {}
    for row in rows(broken):
        if "generated" in row:
            attempts.setdefault(row["generated"], set()).add(row["attempt"])
    return {
        "groups": len(order),
        "again": sum(len(who) - 1 for who in attempts.values()),
        "never": len(set(order) - set(trained)),
        "twice": sum(number > 1 for number in trained.values()),
        "equal": "yes" if {s: r["state"] for s, r in found.items()} == {s: r["state"] for s, r in expected.items()} else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", metavar="PYTHON", help="python of the environment with TRL (`make bench-peers-env`)")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    length = ["--steps", str(asked.steps), "--every", str(asked.every)]
    ours = [sys.executable, str(HERE / "freerun_resume.py"), *length, "--schedule"]
    systems = {"Freerun, free-running": [*ours, "threads"], "Freerun, deterministic": [*ours, "serial"]}
    if asked.peer_python:
        systems = {"TRL GRPOTrainer": [asked.peer_python, str(HERE / "trl_resume.py"), *length], **systems}
    about = ABOUT.format(steps=asked.steps, every=asked.every)
    result: dict[str, Any] = {"about": about, "systems": {}}
    for name, command in systems.items():
        result["systems"][name] = test(command, asked.kills, asked.seed)
        sys.stdout.write(f"{name}: {result['systems'][name]}\n")
        sys.stdout.flush()
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
