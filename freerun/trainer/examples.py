"""Items of a dataset as the trainer sees rollouts: tokenised here, because only executors know the model's tokenizer.

Shapes: T positions of a trajectory.
"""

import math
from collections.abc import Sequence

import torch

from freerun.errors import DataError
from freerun.models.base import LanguageModel
from freerun.types import Example, Group, Stop, Trajectory


def group_of(example: Example, model: LanguageModel, item: int = -1) -> Group:
    """`example` as a group. Each response is closed by the model's end token. Raises `DataError` for a response that does not
    fit into the model's context, and for log-probs that do not fit its tokens."""
    prompt = model.encode(example.prompt)
    # What a tokenizer puts in front of any text belongs in front of the prompt, not of the response; and models with several
    # end tokens add the one that ends a turn last.
    skip, end = len(model.tokenizer.encode("")), max(model.eos)
    trajectories = []
    for index, text in enumerate(example.responses):
        response = [*model.tokenizer.encode(text)[skip:], end]
        if len(prompt) + len(response) > model.context:
            raise _unfit(
                example, f"response {index}: {len(prompt)} + {len(response)} tokens", f"at most {model.context}", "shorten it"
            )
        trajectories.append(_trajectory(example, index, text, prompt, response))
    return Group(
        item=item, prompt=example.prompt, trajectories=tuple(trajectories), rewards=example.rewards, source=example.source
    )


def _trajectory(example: Example, index: int, text: str, prompt: Sequence[int], response: Sequence[int]) -> Trajectory:
    num = len(prompt) + len(response)
    action_T = torch.arange(num) >= len(prompt)
    logp_T = torch.full((num,), math.nan)
    if example.logps:
        logps = example.logps[index]
        if len(logps) != len(response):
            raise _unfit(
                example,
                f"response {index}: {len(logps)} log-probs, {len(response)} tokens",
                "one log-prob per token of the response, its end token last",
                "compute them with the tokenizer of the model that is trained",
            )
        logp_T = torch.cat([torch.zeros(len(prompt)), torch.tensor(logps, dtype=torch.float32)])
    return Trajectory(
        tokens_T=torch.tensor([*prompt, *response]),
        action_T=action_T,
        logp_T=logp_T,
        version_T=torch.full((num,), -1, dtype=torch.int32),
        text=text,
        stop=Stop.EOS,
    )


def _unfit(example: Example, given: str, expected: str, todo: str) -> DataError:
    return DataError(f"example '{example.uid}' does not fit the model", given=given, expected=expected, todo=todo)
