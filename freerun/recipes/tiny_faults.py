"""The smallest run there is, for the fault harness: a model of three thousand parameters takes a hundred steps in some seconds.

It learns nothing. `freerun chaos tiny-faults` kills, freezes and corrupts it.
"""

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import aipo
from freerun.models import tiny_lm
from freerun.recipes.base import RunConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import addition
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


def recipe() -> RunConfig:
    return RunConfig(
        model=tiny_lm.Config(layers=1, width=16, heads=2, kv_heads=1, context=16, alphabet="0123456789+="),
        task=addition.Config(digits=1, train=40, heldout=8),
        algorithm=aipo.Config(),
        sampling=Sampling(temperature=1.0, max_tokens=4),
        control=ControllerConfig(
            steps=100,
            groups=4,
            group_size=4,
            max_lag=1,
            window=4,
            decode_steps=2,
            eval_every=20,
            eval_prompts=4,
            final_eval_prompts=8,
            checkpoint_every=5,
        ),
        generator=GeneratorConfig(max_context=16, dtype="float32"),
        trainer=TrainerConfig(lr=1e-3, dtype="float32"),
    )
