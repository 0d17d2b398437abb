"""What the reference policy may expect on a prompt: an attention head with one learned query over the frozen policy's hidden
states of the prompt, fitted to rewards before RL begins (A-LoL, arXiv 2305.14718).

The policy itself is never changed by it. The head that did best on a held-back part is the one that counts.

Shapes: R prompts, L positions, D width, N scored responses.
"""

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from freerun.algorithms.base import Algorithm
from freerun.errors import ConfigError, DataError
from freerun.models.base import LanguageModel
from freerun.trainer.batch import Row
from freerun.trainer.config import ValueHeadConfig
from freerun.trainer.forward import Trunk
from freerun.trainer.packing import allocate
from freerun.types import Example

COLUMN = "value_reference"
"""The batch column that this gives."""


class ValueHead(nn.Module):
    """Hidden states of a prompt to its value in (0, max_value). Raises `ConfigError` if the heads do not divide the width."""

    def __init__(self, width: int, config: ValueHeadConfig, device: torch.device) -> None:
        super().__init__()
        if width % config.heads:
            raise ConfigError(
                "the heads of the value do not fit the model",
                given=f"{config.heads} heads, hidden states of {width}",
                expected="a number of heads that divides the width",
                todo="change heads in the recipe's reference_value.head",
            )
        self.max_value = config.max_value
        self.query_D = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.out = nn.Linear(width, 1)
        self.to(device)

    def forward(self, hidden_RLD: Tensor, real_RL: Tensor) -> Tensor:
        """Values [R], float32. `real_RL` is False on padding."""
        query_R1D = self.query_D.expand(len(hidden_RLD), 1, -1)
        read_R1D, _ = self.attention(query_R1D, hidden_RLD, hidden_RLD, key_padding_mask=~real_RL, need_weights=False)
        return self.out(read_R1D[:, 0])[:, 0].sigmoid() * self.max_value


class PromptValue:
    """A value head with its fit. `head` is the best so far, and the one that predicts; `fit` trains another.

    Prompts are encoded by `model`; their hidden states are those of the `trunk` that each call names.
    """

    def __init__(self, trunk: Trunk, model: LanguageModel, config: ValueHeadConfig, seed: int) -> None:
        self.config, self._model = config, model
        width = trunk.body.config.get_text_config().hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.head = ValueHead(width, config, trunk.device)
        self._fitted = copy.deepcopy(self.head)
        self._optimizer = torch.optim.AdamW(self._fitted.parameters(), lr=config.lr, weight_decay=0.0)
        self._least_error = math.inf

    def fit(self, trunk: Trunk, examples: Sequence[Example]) -> float:
        """One step of least squares on the rewards of these examples. Returns the mean squared error before it. Raises
        `DataError` for a reward that is missing or that no value can reach."""
        error = self._error(trunk, examples, learn=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return error

    @torch.no_grad()
    def judge(self, trunk: Trunk, examples: Sequence[Example]) -> float:
        """Mean squared error on examples that `fit` has not seen; the head is kept if it is the least so far."""
        error = self._error(trunk, examples, learn=False)
        if error < self._least_error:
            self._least_error, self.head = error, copy.deepcopy(self._fitted)
        return error

    def of(self, trunk: Trunk, examples: Sequence[Example]) -> list[float]:
        """The value of the prompt of each example."""
        return self.predict(trunk, [self._tokens(example) for example in examples]).tolist()

    @torch.no_grad()
    def predict(self, trunk: Trunk, prompts: Sequence[Tensor]) -> Tensor:
        """Values [R] of token sequences, on the CPU."""
        value_R = torch.zeros(len(prompts))
        for members, hidden_RLD, real_RL in _states(trunk, prompts):
            value_R[members] = self.head(hidden_RLD, real_RL).cpu()
        return value_R

    def _error(self, trunk: Trunk, examples: Sequence[Example], *, learn: bool) -> float:
        rewards = [_rewards(example, self.config.max_value) for example in examples]
        total, num = 0.0, sum(map(len, rewards))
        for members, hidden_RLD, real_RL in _states(trunk, [self._tokens(example) for example in examples]):
            value_R = self._fitted(hidden_RLD, real_RL)
            row_N = torch.tensor([row for row, i in enumerate(members) for _ in rewards[i]], device=trunk.device)
            reward_N = torch.tensor([reward for i in members for reward in rewards[i]], device=trunk.device)
            loss = (value_R[row_N] - reward_N).square().sum() / num
            if learn:
                loss.backward()
            total += float(loss.detach())
        return total

    def _tokens(self, example: Example) -> Tensor:
        return torch.tensor(self._model.encode(example.prompt))


def give_values(rows: Sequence[Row], value: PromptValue, trunk: Trunk) -> None:
    """Set the column of rows, once for each of their groups."""
    first = {row.per_row["group"]: row for row in rows}
    prompts = [row.tokens_T[: int(row.action_T.nonzero()[0])] for row in first.values()]
    values = dict(zip(first, value.predict(trunk, prompts).tolist(), strict=True))
    for row in rows:
        row.per_row[COLUMN] = values[row.per_row["group"]]


def check_fitted(algorithm: Algorithm, fitted: bool) -> None:
    """Raises `ConfigError` if the algorithm reads the value of prompts and nobody fits it."""
    if COLUMN in algorithm.columns and not fitted:
        raise ConfigError(
            f"algorithm '{algorithm.name}' reads column '{COLUMN}', and nobody fits that value",
            given="no reference_value",
            expected="a stage before RL that fits it to rewards",
            todo="set reference_value in the recipe",
        )


def _rewards(example: Example, max_value: float) -> list[float]:
    rewards = [reward.value for reward in example.rewards]
    if not rewards or not all(0.0 <= reward <= max_value for reward in rewards):
        raise DataError(
            f"no value can be fitted to example '{example.uid}'",
            given=f"rewards {rewards}",
            expected=f"a reward from 0 to {max_value:g} for each response",
            todo="score the data set, scale its rewards, or raise max_value in the recipe's reference_value.head",
        )
    return rewards


def _states(trunk: Trunk, prompts: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Which prompts, their hidden states and where those are real [R, L]: as many at a time as a micro-batch holds."""
    for members in allocate([len(p) for p in prompts], trunk.config.micro_tokens, padded=True):
        tokens_RL = torch.nn.utils.rnn.pad_sequence([prompts[i] for i in members], batch_first=True)
        length_R1 = torch.tensor([[len(prompts[i])] for i in members])
        real_RL = torch.arange(tokens_RL.shape[1]) < length_R1
        yield members, trunk.all_hidden(tokens_RL), real_RL.to(trunk.device)
