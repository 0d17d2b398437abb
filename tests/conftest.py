"""What holds for every test: one thread, no network, reproducible property tests, and no process left behind."""

import os

# Read when torch and transformers are imported, so set before either is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

from freerun.errors import SandboxError
from freerun.rewards.sandbox import Sandbox, SandboxConfig

hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _nothing_outlives_a_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that spawns processes fails if one of them is still alive a few seconds after it ended."""
    if request.node.get_closest_marker("dist") is None:
        yield
        return
    before = set(psutil.Process().children(recursive=True))
    yield
    spawned = [p for p in psutil.Process().children(recursive=True) if p not in before and not _is_helper(p)]
    _, alive = psutil.wait_procs(spawned, timeout=10)
    assert not alive, f"left running: {[' '.join(p.cmdline()) for p in alive]}"


def _is_helper(process: psutil.Process) -> bool:
    """Python's own tracker of shared resources, which lives as long as the interpreter."""
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def refusal() -> SandboxError | None:
    """Why this machine has no sandbox, if that is so."""
    try:
        asyncio.run(Sandbox(SandboxConfig()).check())
    except SandboxError as error:
        return error
    return None


@pytest.fixture
def sandboxed(refusal: SandboxError | None) -> None:
    """For tests that run code in the sandbox. A machine that cannot protect itself must refuse instead: there the test proves
    that, and says that this is all it did. Whether the machine is one is not left to the sandbox to say."""
    if refusal is not None:
        attempt = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "mount", "-t", "tmpfs", "none", "/tmp"]
        if sys.platform == "linux" and subprocess.run(attempt, capture_output=True, check=False).returncode == 0:
            raise refusal
        with pytest.raises(SandboxError):
            asyncio.run(Sandbox(SandboxConfig()).run("raise SystemExit"))
        pytest.skip(f"code was refused, as it has to be here: {refusal.given}")
