"""Four clients, each with a pendulum of its own mass and a replay that never leaves it, train one SAC policy; the server adds
up what they changed every 0.3 s (FedFix), though the slowest of them takes five times as long as the fastest. Two minutes."""

from freerun.actors.environment import ActorConfig, GymConfig
from freerun.actors.mixture import Mixture
from freerun.algorithms.control import sac
from freerun.env_schedule import EnvSchedule
from freerun.recipes.control_base import ClientConfig, ControlRun, Federation
from freerun.store.phases import Phase
from freerun.store.rounds import Interval
from freerun.trainer.control_config import ControlTrainerConfig, ReplayConfig

MASSES = {0.8: 0.75, 0.95: 0.55, 1.1: 0.35, 1.25: 0.15}
"""Mass of each client's pendulum, and seconds of a piece of its work."""


def recipe() -> ControlRun:
    envs = {mass: GymConfig(id="Pendulum-v1", physics={"m": mass}) for mass in MASSES}
    clients = tuple(ClientConfig(env=envs[mass], seconds=seconds) for mass, seconds in MASSES.items())
    return ControlRun(
        env=envs[0.95],
        algorithm=sac.Config(actor_lr=1e-3, hidden=(64, 64)),
        federation=Federation(clients=clients, scheme=Interval(0.3), lr=0.5),
        control=EnvSchedule(phases=(Phase(env_steps=24_000, start=2_000, random=2_000),), chunk=8),
        sources=(ReplayConfig(capacity=20_000),),
        actor=ActorConfig(envs=4),
        trainer=ControlTrainerConfig(batch=64),
        judge_env=Mixture(envs=tuple(envs.values())),
    )
