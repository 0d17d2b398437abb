"""What MuJoCo prints. Needs the extra `control`."""

import warnings

import mujoco


def hush() -> None:
    """Let MuJoCo warn by way of Python, once for each warning, and not of its deprecations, which concern those who write the
    models: it would print them for every environment of every process."""
    mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:
        warnings.warn(f"MuJoCo: {text}", RuntimeWarning, stacklevel=2)
