"""What MuJoCo prints, and its models changed in known ways. Needs the extra `control`."""

import warnings
from collections.abc import Mapping

import mujoco

from freerun.errors import ConfigError


def hush() -> None:
    """Let MuJoCo warn by way of Python, once for each warning, and not of its deprecations, which concern those who write the
    models: it would print them for every environment of every process."""
    mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:
        warnings.warn(f"MuJoCo: {text}", RuntimeWarning, stacklevel=2)


def scale(model: mujoco.MjModel, data: mujoco.MjData, factors: Mapping[str, float]) -> dict[str, float]:
    """Multiply `gravity`, `friction` of all contacts, and `density` of all bodies; returns what is none of these.

    Densities are given to the compiler of a model and not kept in it: what follows from them are masses and inertias, and from
    those what constraints are solved with. The density of the medium is another quantity, which is 0 in most models.

    Raises `ConfigError` for bodies that would weigh nothing.
    """
    rest = dict(factors)
    model.opt.gravity[:] *= rest.pop("gravity", 1.0)
    friction = rest.pop("friction", 1.0)
    model.geom_friction[:] *= friction
    model.pair_friction[:] *= friction
    density = rest.pop("density", 1.0)
    if density <= 0.0:
        raise ConfigError(
            "bodies have to weigh something",
            given=f"density {density:g}",
            expected="a factor above 0",
            todo="correct env.physics",
        )
    if density != 1.0:
        model.body_mass[:] *= density
        model.body_inertia[:] *= density
        mujoco.mj_setConst(model, data)
    return rest
