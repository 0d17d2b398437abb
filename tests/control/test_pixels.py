"""Pixels from an environment to a network: bytes all the way, numbers from 0 to 1 at its door, and policies that learn from
them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import CATCH

from freerun.actors.collector import Collector
from freerun.actors.environment import ActorConfig, GymConfig, Wrapper
from freerun.algorithms.control import dqn
from freerun.claims.episodes import play
from freerun.env_schedule import EnvSchedule
from freerun.errors import ConfigError
from freerun.recipes import minigrid_pixels
from freerun.recipes.base import PlacementConfig
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig
from freerun.transitions import Order, Spaces
from freerun.weights import inprocess
from tests.control.test_runs import run, state

SEEN = GymConfig(id=CATCH, see="image")
CAMERA = Wrapper(name="minigrid.wrappers:RGBImgObsWrapper", options={"tile_size": 8})
NUMBERS_ONLY = {
    "h2o": "it adds noise to observations",
    "prdc": "it measures how far observations are from each other",
    "unio4": "its model predicts observations",
}
"""Methods that compute with observations themselves."""


def grid(*wrappers: Wrapper) -> GymConfig:
    return GymConfig(id="MiniGrid-Empty-5x5-v0", modules=("minigrid",), wrappers=wrappers, see="image")


# --- environments ------------------------------------------------------------------------------------------------------------


def test_a_wrapper_of_the_config_turns_symbols_into_colours() -> None:
    env = grid(CAMERA).build()
    assert env.spaces == Spaces(obs=(3, 40, 40), actions=7, discrete=True, pixels=True, largest=255)
    seen = env.reset(0)
    assert (seen.shape, seen.dtype) == ((3, 40, 40), np.uint8)
    assert seen.max() > 200
    # The goal, in the corner within the walls, is green, and a little paler where the agent sees it.
    red, green, blue = seen[:, 28, 28].tolist()
    assert red == blue < 100 < green == 255


def test_wrappers_are_put_on_from_the_inside_out_and_stacked_frames_become_channels() -> None:
    stack = Wrapper(name="gymnasium.wrappers:FrameStackObservation", options={"stack_size": 2})
    env = grid(CAMERA, Wrapper(name="minigrid.wrappers:ImgObsWrapper"), stack).build()
    one = grid(CAMERA).build()
    assert env.spaces.obs == (6, 40, 40)
    first = one.reset(0)
    assert np.array_equal(env.reset(0), np.concatenate([first, first]))
    turn = np.array(0)
    assert np.array_equal(env.step(turn).obs, np.concatenate([first, one.step(turn).obs]))


def test_grey_images_have_one_channel() -> None:
    grey = Wrapper(name="gymnasium.wrappers:GrayscaleObservation")
    env = grid(CAMERA, Wrapper(name="minigrid.wrappers:ImgObsWrapper"), grey).build()
    assert (env.spaces.obs, env.spaces.pixels) == ((1, 40, 40), True)
    assert env.reset(0).shape == (1, 40, 40)


# --- the way to the network --------------------------------------------------------------------------------------------------


def test_what_an_actor_records_is_bytes_and_what_its_network_sees_goes_from_0_to_1() -> None:
    config = dqn.Config(hidden=(8,))
    actor = Collector(SEEN, ActorConfig(envs=2, picture_frames=0), config, inprocess.subscriber())
    entered: list[torch.Tensor] = []
    actor.policy["critic"].observer.convolutions.register_forward_pre_hook(lambda module, given: entered.append(given[0]))
    chunk = actor.collect(Order(item=0, steps=7), None).chunk
    actor.close()
    assert chunk.columns["obs"].dtype == chunk.columns["next_obs"].dtype == torch.uint8
    assert chunk.columns["obs"].shape == (7, 2, 1, 36, 36)
    assert torch.equal(torch.stack(entered), chunk.columns["obs"] / 255.0)
    assert torch.stack(entered).unique().tolist() == pytest.approx([0.0, 128 / 255, 1.0])


def test_replay_and_its_checkpoint_hold_pixels_as_bytes(tmp_path) -> None:
    run(catching(env_steps=96), tmp_path)
    kept = {name.rpartition("/")[2]: tensor for name, tensor in state(tmp_path).items() if "/columns/" in name}
    assert {kept[name].dtype for name in ("obs", "next_obs")} == {torch.uint8}
    assert kept["obs"].shape == (96, 1, 36, 36)


def test_every_method_takes_pixels_or_refuses_them(module, toys) -> None:
    config, name = module.Config(), module.__name__.rpartition(".")[2]
    spaces = Spaces(obs=(1, 36, 36), actions=2, discrete=config.build().actions == "discrete", pixels=True)
    if name in NUMBERS_ONLY:
        with pytest.raises(ConfigError, match="does not fit the observations"):
            toys(config, spaces)
        return
    toy = toys(config, spaces)
    assert toy.batch["obs"].dtype == torch.uint8
    for mean, out in toy.losses(toy.batch).values():
        assert out.loss.shape == (toy.steps * toy.envs,)
        assert bool(mean.isfinite())


# --- learning ----------------------------------------------------------------------------------------------------------------


def catching(*, env_steps: int) -> ControlRun:
    """DQN with replay on the ball and the plate."""
    start = min(500, env_steps // 2)
    return ControlRun(
        env=SEEN,
        algorithm=dqn.Config(lr=1e-3, target_every=100, explore_steps=2_000, hidden=(64,)),
        control=EnvSchedule(phases=(Phase(env_steps=env_steps, start=start, utd=0.5),), chunk=8),
        sources=(ReplayConfig(capacity=max(env_steps, 64)),),
        actor=ActorConfig(envs=4, picture_frames=0),
        trainer=ControlTrainerConfig(batch=32),
        placement=PlacementConfig(kind="inline", schedule="serial"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_dqn_learns_to_catch_a_ball_that_it_sees_in_pixels(seed) -> None:
    numbers = play(catching(env_steps=4_000), seed=seed)
    # One way of playing, whatever is seen, catches a third of the balls at most: -0.3.
    assert numbers["start"] < 0.2
    assert numbers["return"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ppo_learns_to_cross_a_room_that_it_sees_in_pixels(seed) -> None:
    recipe = minigrid_pixels.recipe()
    numbers = play(replace(recipe, actor=replace(recipe.actor, picture_frames=0)), seed=seed)
    assert numbers["start"] < 0.5
    assert numbers["return"] > 0.8
