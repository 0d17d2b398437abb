"""PPO finds its way to a green square from what a camera above a small room shows, without knowing what a pixel means. About a
minute; it starts in another place in every episode."""

from freerun.actors.environment import ActorConfig, GymConfig, Wrapper
from freerun.algorithms.control import ppo
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase
from freerun.trainer.control_config import ControlTrainerConfig


def recipe() -> ControlRun:
    return ControlRun(
        env=GymConfig(
            id="MiniGrid-Empty-Random-5x5-v0",
            modules=("minigrid",),
            wrappers=(Wrapper(name="minigrid.wrappers:RGBImgObsWrapper", options={"tile_size": 8}),),
            see="image",
        ),
        algorithm=ppo.Config(lr=5e-4, value_lr=5e-4, entropy=0.01),
        control=EnvSchedule(phases=(Phase(env_steps=20_480),), chunk=64, eval_episodes=20, final_eval_episodes=100),
        actor=ActorConfig(envs=8),
        trainer=ControlTrainerConfig(epochs=4, minibatches=4, clip_norm=0.5, eps=1e-5),
        scores=(0.0, 1.0),
    )
