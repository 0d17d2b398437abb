"""HNPG opens a combination lock of five steps with the help of 10,000 logged episodes, of which a third succeeds: on-policy
steps that data improve. Without the data, random play finds the end once in 100,000 episodes. About a minute."""

from freerun.actors.environment import ActorConfig
from freerun.algorithms.control import hnpg
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ControlRun
from freerun.store.phases import Phase, Portion
from freerun.tasks.lock import LockConfig, LockData
from freerun.trainer.control_config import ControlTrainerConfig, DatasetConfig

STEPS = 5


def recipe() -> ControlRun:
    env = LockConfig(steps=STEPS)
    phase = Phase(env_steps=60_000, sources=(Portion(source="dataset"),))
    return ControlRun(
        env=env,
        algorithm=hnpg.Config(gamma=1.0),
        control=EnvSchedule(phases=(phase,), chunk=10 * STEPS, eval_episodes=50, final_eval_episodes=200),
        sources=(DatasetConfig(data=LockData(env=env)),),
        actor=ActorConfig(envs=20, picture_frames=0),
        trainer=ControlTrainerConfig(batch=1000),
        scores=(0.05, 1.0),
    )
