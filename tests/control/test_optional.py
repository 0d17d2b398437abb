"""Environments and data sets are an extra: without its packages everything else works, and what needs them says so."""

import subprocess
import sys

WITHOUT_THE_EXTRA = """
import sys

for name in ("gymnasium", "mujoco", "minari", "minigrid", "h5py", "scipy", "pygame", "imageio"):
    sys.modules[name] = None

import freerun.launch, freerun.launch_control, freerun.tasks.grades
from freerun.actors.environment import GymConfig
from freerun.datasets.files import MinariConfig
from freerun.errors import ConfigError
from freerun.recipes import base as recipes

for config in (GymConfig(id="CartPole-v1"), MinariConfig(source="somewhere")):
    try:
        config.build()
    except ConfigError as error:
        print(error)
print([name for name, _ in recipes.described()])
"""


def test_without_the_extra_all_is_imported_and_listed_and_an_environment_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_THE_EXTRA], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install 'freerun[control]'") == 2
    assert "pendulum-sac" in done.stdout
