"""Gymnasium's environments behind the small interface, and the pictures that are drawn of them."""

import struct
import zlib
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pytest
from worlds import COUNT, COUNT_DISCRETE

from freerun.actors.environment import GymConfig, Wrapper
from freerun.actors.film import WIDTH, animated_png, film, smaller
from freerun.errors import ConfigError


def test_actions_from_minus_one_to_one_become_the_environments_own() -> None:
    env = GymConfig(id=COUNT).build()
    assert (env.spaces.actions, env.spaces.discrete, env.spaces.obs) == (1, False, (1,))
    env.reset(0)
    # -2 to 4; it pays the negative square of what is missing to 2.5.
    assert [env.step(np.array([a], np.float32)).reward for a in (-1.0, 0.5, 1.0, 7.0)] == [-20.25, 0.0, -2.25, -2.25]


def test_discrete_actions_are_counted_from_zero() -> None:
    env = GymConfig(id=COUNT_DISCRETE).build()
    env.reset(0)
    assert (env.spaces.actions, env.spaces.discrete) == (3, True)
    assert [env.step(np.array(a)).reward for a in range(3)] == [-1.0, 0.0, -1.0]


def test_time_truncates_and_the_task_terminates() -> None:
    cut = GymConfig(id=COUNT, max_steps=2).build()
    cut.reset(0)
    steps = [cut.step(np.zeros(1, np.float32)) for _ in range(2)]
    assert [(s.terminated, s.truncated) for s in steps] == [(False, False), (False, True)]
    pole = GymConfig(id="CartPole-v1").build()
    pole.reset(0)
    while not (last := pole.step(np.array(0))).terminated:
        assert not last.truncated
    assert not last.truncated


def test_the_same_seed_and_actions_are_the_same_episode() -> None:
    first, second = (GymConfig(id="Pendulum-v1").build() for _ in range(2))
    assert np.array_equal(first.reset(3), second.reset(3))
    for a in np.linspace(-1, 1, 20, dtype=np.float32):
        assert np.array_equal(first.step(a[None]).obs, second.step(a[None]).obs)


def test_physics_can_be_wrong_in_a_known_way() -> None:
    right, heavy = GymConfig(id="Pendulum-v1").build(), GymConfig(id="Pendulum-v1", physics={"g": 20.0}).build()
    assert np.array_equal(right.reset(0), heavy.reset(0))
    still = np.zeros(1, np.float32)
    assert not np.array_equal(right.step(still).obs, heavy.step(still).obs)
    with pytest.raises(ConfigError, match="'gravitation'"):
        GymConfig(id="Pendulum-v1", physics={"gravitation": 1.0}).build()


STACK = "gymnasium.wrappers:FrameStackObservation"
CHEETAH = "HalfCheetah-v5"


def model_of(**physics: float):
    """MuJoCo's model of a cheetah whose physics are these factors."""
    return GymConfig(id=CHEETAH, physics=physics).build().inner.model


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_physics_of_mujoco_are_factors(factor) -> None:
    right, changed = model_of(), model_of(gravity=factor, friction=factor, density=factor)
    for quantity in map(attrgetter, ("geom_friction", "body_mass", "body_inertia", "body_subtreemass")):
        assert quantity(changed) == pytest.approx(factor * quantity(right))
    assert changed.opt.gravity == pytest.approx(factor * right.opt.gravity)
    assert changed.opt.density == right.opt.density == 0.0, "that of the air"


def test_what_a_heavier_body_resists_constraints_with_follows_from_its_mass() -> None:
    right, heavy = model_of(), model_of(density=2.0)
    assert (right.dof_invweight0 > heavy.dof_invweight0).all()


def fall(**physics: float) -> np.ndarray:
    """What a cheetah sees on ten steps of pushing off."""
    env = GymConfig(id=CHEETAH, physics=physics).build()
    env.reset(0)
    return np.array([env.step(np.full(6, np.sin(t), np.float32)).obs for t in range(10)])


def test_each_changed_quantity_of_mujoco_moves_a_cheetah_otherwise_and_a_factor_of_1_does_not() -> None:
    right = fall()
    assert np.array_equal(right, fall(gravity=1.0, friction=1.0, density=1.0))
    for name in ("gravity", "friction", "density"):
        assert not np.allclose(right, fall(**{name: 0.5}), atol=1e-3), name


def test_what_mujoco_cannot_change_is_refused() -> None:
    with pytest.raises(ConfigError, match="'wind'"):
        model_of(wind=2.0)
    with pytest.raises(ConfigError, match="weigh something"):
        model_of(density=0.0)


def test_an_image_in_an_observation_comes_with_its_channels_first() -> None:
    env = GymConfig(id="MiniGrid-Empty-5x5-v0", modules=("minigrid",), see="symbols").build()
    assert env.spaces.obs == (3, 7, 7)
    assert (env.spaces.pixels, env.spaces.largest) == (True, 10)
    assert env.reset(0).shape == (3, 7, 7)
    assert env.reset(0).max() <= 10


def test_parts_of_an_observation_become_one_vector() -> None:
    env = GymConfig(id="Blackjack-v1").build()
    assert env.spaces.obs == (32 + 11 + 2,)
    assert env.reset(0).sum() == 3.0


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (GymConfig(id="Nowhere-v0"), "cannot be made"),
        (GymConfig(id="CartPole-v1", modules=("no_such_module",)), "no_such_module"),
        (GymConfig(id="CartPole-v1", see="image"), "an image"),
        (GymConfig(id="CartPole-v1", wrappers=(Wrapper(name="gymnasium.wrappers:NoSuchWrapper"),)), "is no wrapper"),
        (GymConfig(id="CartPole-v1", wrappers=(Wrapper(name="os:system", options={"command": "true"}),)), "is no wrapper"),
        (GymConfig(id="CartPole-v1", wrappers=(Wrapper(name="no_such_module:Frames"),)), "no_such_module"),
        (GymConfig(id="CartPole-v1", wrappers=(Wrapper(name=STACK, options={"frames": 2}),)), "frames"),
    ],
)
def test_what_cannot_be_made_or_used_is_refused(env, said) -> None:
    with pytest.raises(ConfigError, match=said):
        env.build()


# --- pictures ----------------------------------------------------------------------------------------------------------------


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """(type, data) of each, their checksums checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        at += 12 + size
    return found


def frames(png: bytes) -> list[np.ndarray]:
    """The frames of an animated picture as this package writes it: filter 0, each over the one before."""
    shown, scenes, place, offset = None, [], None, 0
    for kind, data in chunks(png):
        if kind == b"IHDR":
            width, height = struct.unpack(">II", data[:8])
            shown = np.zeros((height, width, 3), np.uint8)
        elif kind == b"fcTL":
            place = struct.unpack(">IIII", data[4:20])
        elif kind in (b"IDAT", b"fdAT"):
            offset = 4 if kind == b"fdAT" else 0
            width, height, left, top = place
            rows = np.frombuffer(zlib.decompress(data[offset:]), np.uint8).reshape(height, 1 + 3 * width)
            assert not rows[:, 0].any()
            shown = shown.copy()
            shown[top : top + height, left : left + width] = rows[:, 1:].reshape(height, width, 3)
            scenes.append(shown)
    return scenes


def test_a_moving_picture_holds_its_frames_pixel_by_pixel() -> None:
    random = np.random.default_rng(0)
    scenes = [random.integers(0, 256, (6, 9, 3), dtype=np.uint8)]
    for _ in range(4):
        scenes.append(scenes[-1].copy())
        scenes[-1][1:3, 2:5] = random.integers(0, 256, (2, 3, 3))
    scenes.append(scenes[-1])
    found = frames(animated_png(scenes))
    assert len(found) == len(scenes)
    assert all(np.array_equal(a, b) for a, b in zip(found, scenes, strict=True))


def test_frames_and_their_parts_are_numbered_without_a_gap() -> None:
    numbers = [
        struct.unpack(">I", data[:4])[0]
        for kind, data in chunks(animated_png([np.full((2, 2, 3), i, np.uint8) for i in range(4)]))
        if kind in (b"fcTL", b"fdAT")
    ]
    assert numbers == list(range(7))


def test_a_wide_scene_is_made_smaller_by_averaging_whole_blocks() -> None:
    scene = np.arange(2 * 2 * WIDTH * 3, dtype=np.uint32).reshape(2, 2 * WIDTH, 3).astype(np.uint8)
    small = smaller(scene)
    assert small.shape == (1, WIDTH, 3)
    assert small[0, 0, 0] == round(np.mean([scene[0, 0, 0], scene[0, 1, 0], scene[1, 0, 0], scene[1, 1, 0]]))


@dataclass(frozen=True)
class Painted:
    """A config of an environment whose picture is the number of its step; it counts how often it was drawn."""

    length: int
    drawn: list

    def build(self, *, picture: bool = False) -> "Painted":
        return self

    def reset(self, seed: int) -> np.ndarray:
        self.drawn.clear()
        return np.zeros(1)

    def step(self, action: np.ndarray) -> object:
        from freerun.actors.environment import Step

        step = int(action) + 1
        return Step(np.full(1, step), 0.0, step == self.length, False)

    def picture(self) -> np.ndarray:
        self.drawn.append(1)
        return np.full((2, 2, 3), self.step_of(), np.uint8)

    def step_of(self) -> int:
        return len(self.drawn)

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(("length", "expected"), [(3, 3), (40, 5)])
def test_a_film_is_of_the_whole_episode_in_no_more_frames_than_asked_and_few_drawings(length, expected, tmp_path) -> None:
    env = Painted(length, [])
    assert film(env, lambda obs: obs[0], tmp_path / "film.png", seed=0, frames=5) == ""
    assert len(frames((tmp_path / "film.png").read_bytes())) == expected
    assert len(env.drawn) <= 5 * 4


def test_where_nothing_can_be_drawn_the_reason_is_returned(tmp_path) -> None:
    def act(obs: np.ndarray) -> np.ndarray:
        return np.zeros(1, np.float32)

    assert film(GymConfig(id=COUNT), act, tmp_path / "film.png", seed=0, frames=5) != ""
    assert not (tmp_path / "film.png").exists()


def test_a_pendulum_is_filmed(tmp_path) -> None:
    def act(obs: np.ndarray) -> np.ndarray:
        return np.zeros(1, np.float32)

    assert film(GymConfig(id="Pendulum-v1", max_steps=20), act, tmp_path / "film.png", seed=0, frames=3) == ""
    scenes = frames((tmp_path / "film.png").read_bytes())
    assert [scene.shape for scene in scenes] == [(166, 166, 3)] * 3
    assert not np.array_equal(scenes[0], scenes[-1])


def test_mujoco_warns_by_way_of_python_and_not_of_deprecations(capfd: pytest.CaptureFixture[str]) -> None:
    GymConfig(id="HalfCheetah-v5").build().close()
    assert capfd.readouterr() == ("", "")
    import mujoco

    warn = mujoco.get_mju_user_warning()
    with pytest.warns(RuntimeWarning, match="huge value"):
        warn("Nan, Inf or huge value in QACC")
