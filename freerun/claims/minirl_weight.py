"""When the sampler's logits are off by noise, the importance weight is what keeps the gradient's direction."""

from collections.abc import Mapping
from typing import Any

import torch

from freerun.algorithms.base import AlgorithmConfig
from freerun.algorithms.language import minirl
from freerun.claims import tabular
from freerun.claims.base import Arm, Claim, Expectation

NOISE = 0.5
"""Standard deviation of the error of a sampler's logits."""
SETTING = tabular.Setting(groups=2048)
"""One batch, large enough that its gradient is not mostly noise of its own."""


def arm(algorithm: AlgorithmConfig) -> Arm:
    """The cosine of the algorithm's first gradient with that of the exact expected reward, at a policy half way to the goal."""

    def run(seed: int) -> Mapping[str, Any]:
        make = torch.Generator().manual_seed(seed)
        problem = tabular.chain()
        learner = tabular.Learner(algorithm, problem, SETTING, make)
        begun = tabular.train(minirl.Config(), problem, tabular.Setting(steps=40), seed=seed).policy_PTSV.log()
        learner.logits_PTSV.data.copy_(begun)
        noise_PTSV = torch.randn(begun.shape, generator=make, dtype=begun.dtype)
        prompt_B = torch.randint(len(begun), (SETTING.groups,), generator=make).repeat_interleave(SETTING.group_size)
        samples = tabular.sample(problem, begun + NOISE * noise_PTSV, prompt_B, 0, make)
        learner.gradient(samples, learner.batch_of(samples))
        found = learner.logits_PTSV.grad
        (exact,) = torch.autograd.grad(problem.value(learner.logits_PTSV).mean(), learner.logits_PTSV)
        assert found is not None, "a batch of thousands of groups has a gradient"
        return {"cosine": float(torch.cosine_similarity(-found.flatten(), exact.flatten(), dim=0))}

    return run


def claim() -> Claim:
    return Claim(
        sentence=(
            "With a noise of 0.5 on the sampler's logits, MiniRL's gradient is nearer in direction to that of the expected "
            "reward than the same gradient without its weight."
        ),
        paper="MiniRL (arXiv 2512.01374), on-policy: without the correction for the engine it collapses",
        method=minirl,
        arms={
            "weight": arm(minirl.Config()),
            # A cap this small makes all weights equal.
            "no weight": arm(minirl.Config(cap=1e-6)),
            "weight of at most 1": arm(minirl.Config(cap=1.0)),
        },
        metric="cosine",
        expected=(Expectation(better="weight", worse="no weight"),),
        seeds=5,
        quick=True,
        minutes=2.0,
    )
