"""A sampler that is not the trainer: fixed noise on its logits, as another engine or another precision would make it.

Shapes: P prompts, T positions, S states, V symbols (or arms), B responses.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freerun.algorithms.base import AlgorithmConfig
from freerun.claims import tabular
from freerun.claims.base import Arm
from freerun.claims.curves import mean, thinned
from freerun.types import Batch

NOISE = 0.5
"""Standard deviation of the noise, in nats."""
BANDITS = 200
"""Six-armed bandits over which the gradient of one step is averaged."""
NUM_ARMS = 6


def arm(config: AlgorithmConfig, *, noise: float = NOISE, steps: int = 100) -> Arm:
    """The claim's numbers for one method: the gradient of one step, and the sequence task after `steps` updates."""

    def run(seed: int) -> Mapping[str, Any]:
        return {**one_step(config, seed, noise), **learned(config, seed, noise, steps)}

    return run


def one_step(config: AlgorithmConfig, seed: int, noise: float) -> dict[str, float]:
    """The expected update of a policy over six arms against the gradient of its expected reward, without any draw: `cosine`,
    and `closeness`, 1 minus the length of the difference over that of the gradient. Means over bandits of standard normal
    logits and rewards from 0 to 1."""
    make = torch.Generator().manual_seed(seed)
    cosines, errors = [], []
    for _ in range(BANDITS):
        logits_V, noise_V = (torch.randn(NUM_ARMS, generator=make, dtype=torch.float64) for _ in range(2))
        reward_V = torch.rand(NUM_ARMS, generator=make, dtype=torch.float64)
        policy_V = logits_V.softmax(-1)
        truth_V = policy_V * (reward_V - (policy_V * reward_V).sum())
        update_V = expected_update(config, logits_V, (logits_V + noise * noise_V).softmax(-1), reward_V)
        cosines.append(float(torch.cosine_similarity(update_V, truth_V, dim=0)))
        errors.append(float((update_V - truth_V).norm() / truth_V.norm()))
    return {"cosine": sum(cosines) / BANDITS, "closeness": 1.0 - sum(errors) / BANDITS}


def expected_update(config: AlgorithmConfig, logits_V: Tensor, sampler_V: Tensor, reward_V: Tensor) -> Tensor:
    """What the method's policy term makes of one draw, on average over the sampler's draws. The advantage is what a large group
    would give: the reward minus the sampler's mean, not scaled."""
    logits_V = logits_V.clone().requires_grad_()
    # Each arm is a response of one token.
    logp_V1 = logits_V.log_softmax(-1)[:, None]
    mask_V1 = torch.ones_like(logp_V1, dtype=torch.bool)
    columns = {
        "mask": mask_V1,
        "mask_selected": mask_V1,
        "advantage": (reward_V - (sampler_V * reward_V).sum())[:, None],
        "logp_behaviour": sampler_V.log()[:, None],
        "logp_proximal": logp_V1.detach(),
    }
    algorithm = config.build()
    out = algorithm.terms[0].loss({"logp": logp_V1}, Batch(columns, reader=algorithm.name), algorithm.init())
    (gradient_V,) = torch.autograd.grad((sampler_V * out.loss[:, 0]).sum(), logits_V)
    return -gradient_V


def learned(config: AlgorithmConfig, seed: int, noise: float, steps: int) -> dict[str, Any]:
    """`value` of the trainer's policy on the sequence task after `steps` updates on fresh data of its noisy sampler, and
    `mean_value` on the way. The noise belongs to the tables: it stays the same while the policy moves."""
    make, problem, setting = torch.Generator().manual_seed(seed), tabular.chain(), tabular.Setting()
    noise_PTSV = noise * torch.randn(problem.start_PTSV.shape, generator=make, dtype=torch.float64)
    learner = tabular.Learner(config, problem, setting, make)
    values = []
    for _ in range(steps):
        logits_PTSV = learner.logits_PTSV.detach()
        values.append(float(problem.value(logits_PTSV).mean()))
        prompt_B = torch.randint(len(noise_PTSV), (setting.groups,), generator=make).repeat_interleave(setting.group_size)
        learner.step(tabular.sample(problem, logits_PTSV + noise_PTSV, prompt_B, learner.version, make))
    last = float(problem.value(learner.logits_PTSV.detach()).mean())
    return {"value": last, "mean_value": mean(values), "curves": {"value": thinned(values)}}
