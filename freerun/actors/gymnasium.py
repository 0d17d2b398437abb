"""Gymnasium environments behind the small interface of `environment.py`. Needs the extra `control`."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from freerun.actors.environment import GymConfig, Step, Wrapper
from freerun.errors import ConfigError
from freerun.transitions import Spaces

try:
    import gymnasium
    from gymnasium import spaces as kinds
except ImportError as error:
    raise ConfigError(
        "environments need a package that is not installed",
        given=str(error),
        expected="gymnasium",
        todo="pip install 'freerun[control]'",
    ) from error


LARGEST = {"image": 255, "symbols": 10}
"""Ways to see an image of bytes, and the largest of these."""


def make(config: GymConfig, *, picture: bool = False) -> "GymEnvironment":
    """See `GymConfig`. Raises `ConfigError` for an unknown id, missing packages, or spaces that nobody here can use."""
    options = config.arguments | ({"render_mode": "rgb_array"} if picture else {})
    try:
        for module in config.modules:
            importlib.import_module(module)
        _hush(config.id)
        env = gymnasium.make(config.id, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(
            f"environment '{config.id}' cannot be made",
            given=f"{type(error).__name__}: {error}",
            expected="an id that Gymnasium knows, with the packages that it needs",
            todo="correct env.id, or pip install 'freerun[control]'",
        ) from error
    _change_physics(env.unwrapped, config.physics)
    for wrapper in config.wrappers:
        env = _wrapped(env, wrapper)
    return GymEnvironment(env, config)


def _wrapped(env: "gymnasium.Env", wrapper: Wrapper) -> "gymnasium.Env":
    module, _, name = wrapper.name.partition(":")
    try:
        kind = vars(importlib.import_module(module)).get(name)
        if not (isinstance(kind, type) and issubclass(kind, gymnasium.Wrapper)):
            raise TypeError(f"{name or 'nothing'} of {module} is no wrapper of Gymnasium")
        return kind(env, **wrapper.options)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"'{wrapper.name}' cannot be put around the environment",
            given=f"{dict(wrapper.options)}: {type(error).__name__}: {error}",
            expected="module:class of a gymnasium.Wrapper, with the arguments that it takes",
            todo="correct env.wrappers",
        ) from error


def _hush(env: str) -> None:
    """Before an environment of MuJoCo is made."""
    spec = gymnasium.registry.get(env)
    if spec is not None and "mujoco" in str(spec.entry_point):
        from freerun.actors.mujoco import hush

        hush()


class GymEnvironment:
    """See `environment.Environment`."""

    def __init__(self, env: "gymnasium.Env", config: GymConfig) -> None:
        self._env, self._see = env, config.see
        shape, largest = _seen(env.observation_space, config)
        action = env.action_space
        self._discrete = isinstance(action, kinds.Discrete)
        if isinstance(action, kinds.Discrete):
            self._first, num = int(action.start), int(action.n)
        elif isinstance(action, kinds.Box) and len(action.shape) == 1 and np.isfinite([action.low, action.high]).all():
            self._low, self._span, num = action.low, (action.high - action.low) / 2.0, action.shape[0]
            self._one = np.ones_like(action.low)
        else:
            raise _unusable(config, f"actions {action}", "Discrete, or a bounded Box with one dimension")
        self.spaces = Spaces(
            obs=shape, actions=num, discrete=self._discrete, pixels=bool(largest), largest=largest or LARGEST["image"]
        )

    @property
    def inner(self) -> Any:
        """The environment itself, without what Gymnasium puts around it: for who plans in it."""
        return self._env.unwrapped

    def reset(self, seed: int) -> np.ndarray:
        obs, _ = self._env.reset(seed=seed)
        return self._array(obs)

    def step(self, action: np.ndarray) -> Step:
        if self._discrete:
            played: Any = int(action) + self._first
        else:
            # Not np.clip, nor numbers of Python's: for so few dimensions these cost more than the arithmetic.
            played = self._low + (np.minimum(np.maximum(action, -self._one), self._one) + self._one) * self._span
        obs, reward, terminated, truncated, _ = self._env.step(played)
        # An environment that says both has ended for the task's reasons.
        return Step(self._array(obs), float(reward), bool(terminated), bool(truncated) and not terminated)

    def picture(self) -> np.ndarray | None:
        frame = self._env.render()
        return frame if isinstance(frame, np.ndarray) else None

    def close(self) -> None:
        self._env.close()

    def _array(self, obs: Any) -> np.ndarray:
        if self._see in LARGEST:
            return _channels_first(np.asarray(obs["image"] if isinstance(obs, Mapping) else obs))
        if self._see == "flat" and not isinstance(obs, np.ndarray):
            return np.asarray(kinds.flatten(self._env.observation_space, obs), dtype=np.float32)
        return np.asarray(obs, dtype=np.float32).reshape(-1) if self._see == "flat" else np.asarray(obs)


def _channels_first(image: np.ndarray) -> np.ndarray:
    """[height, width], [height, width, channels] or [frames, height, width, channels] as [channels, height, width]."""
    if image.ndim == 2:
        return image[None]
    frames = image if image.ndim == 4 else image[None]
    return np.moveaxis(frames, -1, 1).reshape(-1, *frames.shape[1:3])


def _seen(space: "kinds.Space", config: GymConfig) -> tuple[tuple[int, ...], int]:
    """The shape of what networks see; and, if it is bytes, the largest of them, else 0."""
    if config.see in LARGEST:
        image = space["image"] if isinstance(space, kinds.Dict) else space
        if not isinstance(image, kinds.Box) or len(image.shape) not in (2, 3, 4):
            raise _unusable(config, f"observations {space}", "an image, or a part called 'image'")
        of_bytes = image.dtype == np.uint8 and (config.see == "symbols" or float(np.max(image.high)) > 100)
        return _channels_first(np.zeros(image.shape, bool)).shape, LARGEST[config.see] if of_bytes else 0
    if config.see == "whole":
        if not isinstance(space, kinds.Box):
            raise _unusable(config, f"observations {space}", "a Box")
        return space.shape, LARGEST["image"] if space.dtype == np.uint8 else 0
    if not space.is_np_flattenable:
        raise _unusable(config, f"observations {space}", "what can be flattened into a vector")
    return (kinds.flatdim(space),), 0


def _change_physics(env: Any, physics: Mapping[str, float]) -> None:
    """Set attributes of an environment, or scale quantities of a MuJoCo model."""
    if not physics:
        return
    rest = dict(physics)
    if "model" in vars(env):
        from freerun.actors.mujoco import scale

        rest = scale(env.model, env.data, physics)
    for name, value in rest.items():
        if name not in vars(env):
            raise ConfigError(
                f"the environment has no attribute '{name}' to change",
                given=f"physics {dict(physics)}",
                expected="an attribute of it; for MuJoCo gravity, friction or density",
                todo="correct env.physics",
            )
        vars(env)[name] = value


def _unusable(config: GymConfig, given: str, expected: str) -> ConfigError:
    return ConfigError(
        f"environment '{config.id}' is of a kind that is not supported",
        given=given,
        expected=expected,
        todo="wrap it, or set env.see",
    )
