"""A transformer of half a million parameters, from random weights: supervised warm start on sums until it knows some of them,
then asynchronous RL, in about a minute.

Nothing is downloaded. Meant for trying a change at once: every part of the engine runs, and every method has a recipe that
differs from this one in what is its own.
"""

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import aipo, sft
from freerun.models import tiny_lm
from freerun.recipes.base import RunConfig, WarmStartConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import addition
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


def recipe() -> RunConfig:
    return RunConfig(
        model=tiny_lm.Config(layers=2, width=128, heads=8, kv_heads=8, context=32, alphabet="0123456789+=-"),
        task=addition.Config(digits=2),
        algorithm=aipo.Config(),
        sampling=Sampling(temperature=1.0, max_tokens=6),
        warm_start=WarmStartConfig(algorithm=sft.Config(), steps=160, batch=128, lr=5e-3, warmup_steps=20, hold=0.5),
        control=ControllerConfig(
            steps=100,
            groups=32,
            group_size=8,
            max_lag=1,
            window=4,
            stream=32,
            decode_steps=8,
            eval_every=20,
            eval_prompts=256,
            final_eval_prompts=512,
            sample_every=8,
        ),
        generator=GeneratorConfig(max_context=32, dtype="float32"),
        trainer=TrainerConfig(lr=1.5e-4, warmup_steps=10, packing="rows", micro_tokens=4096, dtype="float32"),
    )
