"""Prompts with a few possible responses of different lengths, so that the expected update of a method can be worked out.

What is chosen is the response, by its first token; the rest of it follows. A response has one score, then, which a reduction
may divide by its length.

Shapes: P prompts, R responses of a prompt, G responses of a group, N groups, T tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freerun.algorithms.base import Algorithm
from freerun.ops.reduce import count, element_weights, weighted_sum
from freerun.types import Batch, Group, Prompt, RewardResult, Stop, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """Lengths and rewards of the responses, the same for every prompt, and the logits of the first policy [P, R]."""

    lengths: tuple[int, ...]
    rewards: tuple[float, ...]
    start_PR: Tensor

    def value(self, logits_PR: Tensor) -> Tensor:
        """Expected reward, mean over prompts; gradients flow."""
        return (logits_PR.softmax(-1) @ torch.tensor(self.rewards, dtype=logits_PR.dtype)).mean()

    def gradient(self, logits_PR: Tensor) -> Tensor:
        """Of the expected reward [P, R]."""
        logits_PR = logits_PR.clone().requires_grad_()
        (gradient_PR,) = torch.autograd.grad(self.value(logits_PR), logits_PR)
        return gradient_PR

    def group(self, responses: Sequence[int]) -> Group:
        """A group of these responses."""
        return Group(
            item=0,
            prompt=Prompt("choices", "?"),
            trajectories=tuple(_trajectory(self.lengths[r]) for r in responses),
            rewards=tuple(RewardResult(self.rewards[r]) for r in responses),
        )

    def update(self, algorithm: Algorithm, logits_PR: Tensor, prompt_N: Tensor, chosen_NG: Tensor) -> Tensor:
        """What one step of `algorithm` on these groups adds to the logits, per unit of learning rate [P, R]."""
        logits_PR = logits_PR.clone().requires_grad_()
        advantage_NG = torch.stack([algorithm.credit(self.group(row), algorithm.init())[0] for row in chosen_NG.tolist()])
        prompt_B, chosen_B = prompt_N.repeat_interleave(chosen_NG.shape[1]), chosen_NG.flatten()
        length_B1 = torch.tensor(self.lengths)[chosen_B][:, None]
        position_T = torch.arange(max(self.lengths))
        mask_BT = position_T < length_B1
        first_B = logits_PR.log_softmax(-1)[prompt_B, chosen_B]
        logp_BT = torch.where(position_T == 0, first_B[:, None], 0.0)
        group_B = torch.arange(len(chosen_NG)).repeat_interleave(chosen_NG.shape[1])
        tokens_N = torch.zeros(len(chosen_NG), dtype=torch.int64).index_add(0, group_B, length_B1[:, 0])
        columns = {
            "mask": mask_BT,
            "advantage": advantage_NG.flatten()[:, None].expand(mask_BT.shape).to(logp_BT.dtype),
            "logp_behaviour": logp_BT.detach(),
            "group": group_B,
            "group_tokens": tokens_N[group_B],
        }
        batch = Batch(columns, reader=algorithm.name)
        if algorithm.prepare is not None:
            batch = batch.with_columns(**algorithm.prepare(batch, algorithm.init()))
        total = logp_BT.new_zeros(())
        for term in algorithm.terms:
            loss_BT = term.loss({"logp": logp_BT}, batch, algorithm.init()).loss
            mask = batch[term.mask]
            value = weighted_sum(loss_BT, element_weights(mask, term.reduction, batch))
            total = total + term.weight * value / count(mask, term.reduction, batch).clamp(min=1)
        (gradient_PR,) = torch.autograd.grad(total, logits_PR)
        return -gradient_PR

    def sampled(self, algorithm: Algorithm, logits_PR: Tensor, groups: int, size: int, make: torch.Generator) -> Tensor:
        """`update` on groups of the policy itself, each of a random prompt."""
        prompt_N = torch.randint(len(logits_PR), (groups,), generator=make)
        chosen_NG = torch.multinomial(logits_PR.softmax(-1)[prompt_N], size, replacement=True, generator=make)
        return self.update(algorithm, logits_PR, prompt_N, chosen_NG)

    def moments(self, algorithm: Algorithm, logits_PR: Tensor, size: int) -> tuple[Tensor, float]:
        """Mean [P, R] and total variance of `update` on one group of a random prompt, over all groups that there can be."""
        p_PR, weight = logits_PR.softmax(-1), 1.0 / len(logits_PR)
        mean_PR, square = torch.zeros_like(logits_PR), 0.0
        for prompt in range(len(logits_PR)):
            for chosen in itertools.product(range(len(self.lengths)), repeat=size):
                row = torch.tensor([chosen])
                update_PR = self.update(algorithm, logits_PR, torch.tensor([prompt]), row)
                share = weight * float(p_PR[prompt, row[0]].prod())
                mean_PR += share * update_PR
                square += share * float(update_PR.square().sum())
        return mean_PR, square - float(mean_PR.square().sum())


def _trajectory(length: int) -> Trajectory:
    action_T = torch.arange(1 + length) > 0
    return Trajectory(
        tokens_T=torch.zeros(1 + length, dtype=torch.int64),
        action_T=action_T,
        logp_T=torch.zeros(1 + length),
        version_T=action_T.int() - 1,
        text="",
        stop=Stop.EOS,
    )
