"""PPO finds its way through two rooms that are new in every episode, after imitating a planner in fifty of them and while it
goes on imitating. About two minutes; PPO alone needs several times the steps."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.algorithms.control import ppo_imitation
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.tasks.minigrid import GridDemos
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig


def recipe() -> ControlRun:
    env = GymConfig(id="MiniGrid-MultiRoom-N2-S4-v0", modules=("minigrid",), see="symbols")
    demos = (Portion(source="dataset"),)
    phases = (
        Phase(name="imitation", updates=1_000, sources=demos, off=("policy", "value")),
        Phase(name="online", env_steps=60_000, sources=demos),
    )
    return ControlRun(
        env=env,
        algorithm=ppo_imitation.Config(lr=1e-3),
        control=EnvSchedule(phases=phases, chunk=128, eval_episodes=20, final_eval_episodes=100),
        sources=(DatasetConfig(data=GridDemos(env=env, levels=50, episodes=50)),),
        actor=ActorConfig(envs=8),
        trainer=ControlTrainerConfig(batch=256, epochs=4, minibatches=4, clip_norm=0.5, eps=1e-5),
        scores=(0.0, 1.0),
    )
