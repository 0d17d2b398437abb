"""SOPHIA without pictures: a small model learns to answer questions from its own reports, by way of somebody else's reasoning.

Scenes show numbers by letters. The model first learns to report them, with holes and mistakes; a reasoner that sees only such
reports answers questions about them and makes up what is missing. Of 64 responses to a question the shortest is imitated that
is right and comes from a report that leads to right answers more than three times in four. The data is made on first use.
"""

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import sft, sophia
from freerun.models import tiny_lm
from freerun.recipes.base import RunConfig, WarmStartConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import authors, reports, scenes
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


def recipe() -> RunConfig:
    model = tiny_lm.Config(layers=2, width=64, heads=4, kv_heads=2, context=24, alphabet=scenes.ALPHABET)
    start = WarmStartConfig(algorithm=sft.Config(), examples=scenes.Reports(), steps=150, batch=16, lr=3e-3)
    trainer, sampling = TrainerConfig(lr=1e-3, packing="rows", micro_tokens=4096), Sampling(max_tokens=12)
    policy = authors.Author(model=model, warm_start=start, sampling=sampling, trainer=trainer)
    return RunConfig(
        model=model,
        task=scenes.Config(),
        algorithm=sophia.Config(),
        sampling=sampling,
        offline=reports.Collected(author=policy, reasoner=scenes.Reasoner()),
        warm_start=start,
        control=ControllerConfig(
            steps=300,
            groups=32,
            group_size=1,
            max_lag=0,
            stream=32,
            eval_every=50,
            eval_prompts=128,
            final_eval_prompts=256,
            sample_every=32,
        ),
        generator=GeneratorConfig(max_context=24),
        trainer=trainer,
    )
