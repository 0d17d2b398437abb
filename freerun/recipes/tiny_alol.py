"""A-LoL on words to reverse: offline RL from a data set in which almost half of the answers are wrong, without generating any.

A careless author writes the data, once. The policy is fine-tuned on all of it and becomes the reference; the reward to expect
of it on each prompt is fitted to the rewards of the data; then only responses that do better are trained on. Generators answer
the held-out problems and nothing else. Less than a minute on one core, in which a fifth of these become four fifths.
"""

from freerun.actors.generator import GeneratorConfig
from freerun.algorithms.language import alol, sft
from freerun.models import tiny_lm
from freerun.recipes.base import ReferenceValueConfig, RunConfig, WarmStartConfig
from freerun.schedule import ControllerConfig
from freerun.tasks import reversal, written
from freerun.trainer.trainer import TrainerConfig
from freerun.types import Sampling


def recipe() -> RunConfig:
    data = written.Noisy(alphabet="abcdefghij", noise=0.15, prompts=2048, samples=4)
    return RunConfig(
        model=tiny_lm.Config(layers=2, width=64, heads=4, kv_heads=2, context=16, alphabet="abcdefghij>"),
        task=reversal.Config(least=4, most=4, letters=10),
        algorithm=alol.Config(),
        sampling=Sampling(max_tokens=8),
        offline=data,
        warm_start=WarmStartConfig(algorithm=sft.Config(), examples=data, steps=150, batch=16, lr=5e-3),
        reference_value=ReferenceValueConfig(),
        control=ControllerConfig(
            steps=200,
            groups=64,
            group_size=1,
            max_lag=0,
            stream=64,
            eval_every=50,
            eval_prompts=256,
            final_eval_prompts=512,
            sample_every=64,
        ),
        generator=GeneratorConfig(max_context=16),
        trainer=TrainerConfig(lr=3e-4, packing="rows", micro_tokens=4096),
    )
