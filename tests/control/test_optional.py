"""Environments and data sets are an extra: without its packages everything else works, and what needs them says so."""

import subprocess
import sys

WITHOUT = """
import sys
for name in ("gymnasium", "mujoco", "minari", "minigrid", "h5py", "scipy", "pygame", "imageio"):
    sys.modules[name] = None
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, timeout=100)


def test_everything_is_imported_and_recipes_are_listed_without_the_extra() -> None:
    done = python(
        "import freerun.launch, freerun.launch_control, freerun.tasks.grades\nfrom freerun.cli import main\nmain(['list'])"
    )
    assert done.returncode == 0, done.stderr
    assert "pendulum-sac" in done.stdout


def test_an_environment_says_what_to_install() -> None:
    done = python(
        "from freerun.actors.environment import GymConfig\n"
        "from freerun.datasets.files import MinariConfig\n"
        "from freerun.errors import ConfigError\n"
        "for config in (GymConfig(id='CartPole-v1'), MinariConfig(source='somewhere')):\n"
        "    try:\n"
        "        config.build()\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install 'freerun[control]'") == 2
