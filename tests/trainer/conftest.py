"""A random two-layer Llama over 64 tokens, groups of made-up responses to train it on, and an inline REINFORCE.

Shapes: T positions of a trajectory, A its action tokens, G trajectories of a group.
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from freerun.algorithms.base import Algorithm, LossOut, Term
from freerun.ops.reduce import Reduction, means
from freerun.trainer.trainer import TrainerConfig, TrainerExecutor
from freerun.types import Group, Prompt, RewardResult, Stop, Trajectory
from freerun.weights import inprocess


class Letters:
    """A tokenizer: one token per character, and a token 63 in front of every text."""

    def encode(self, text: str) -> list[int]:
        return [63, *(ord(c) % 60 for c in text)]


@dataclass
class FakeLanguageModel:
    model: PreTrainedModel
    tokenizer: Letters = field(default_factory=Letters)
    eos: frozenset[int] = frozenset({1})
    context: int = 64

    def encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt.content)


@dataclass
class FakeModelConfig:
    """Builds a copy of `network` each time."""

    network: PreTrainedModel

    def build(self, *, dtype: str, device: str, seed: int) -> FakeLanguageModel:
        assert dtype == "float32", "the trainer holds float32 masters"
        return FakeLanguageModel(copy.deepcopy(self.network))


@dataclass(frozen=True)
class Reinforce:
    """`-A logp`, A = reward - group mean, and whatever a test wants changed."""

    reduction: Reduction = Reduction.TOKEN_MEAN
    changes: dict = field(default_factory=dict)

    def build(self) -> Algorithm:
        return replace(
            Algorithm(
                name="inline",
                credit=centred,
                terms=(Term(name="policy", loss=score_loss, reduction=self.reduction),),
                needs=frozenset({"mask", "advantage"}),
                group_baseline=True,
            ),
            **self.changes,
        )


def centred(group: Group, state: dict) -> tuple[Tensor, dict]:
    reward_G = torch.tensor([r.value for r in group.rewards])
    return reward_G - reward_G.mean(), state


def score_loss(outputs, batch, state) -> LossOut:
    return LossOut(-batch["advantage"] * outputs["logp"])


def compared_with(column: str) -> Reinforce:
    """REINFORCE that reads `column` as well and reports how far the policy is from it, and it from the behaviour policy."""

    def loss(outputs, batch, state) -> LossOut:
        distance_BT = (outputs["logp"] - batch[column]).abs()
        from_behaviour_BT = (batch[column] - batch["logp_behaviour"]).abs()
        metrics = means(batch["mask"], distance=distance_BT, from_behaviour=from_behaviour_BT)
        return LossOut(-batch["advantage"] * outputs["logp"], metrics)

    needs = frozenset({"mask", "advantage", "logp_behaviour", column})
    return Reinforce(changes={"terms": (Term(name="policy", loss=loss),), "needs": needs})


def random_llama(**changes) -> PreTrainedModel:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attn_implementation": "sdpa",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **{**sizes, **changes}))
        # Twenty times the usual spread: differences between tokens are then far above rounding.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.4)
    return model.eval()


def plain_logps(model: PreTrainedModel, tokens_T: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of tokens 1, 2, ... from a plain forward pass over the whole trajectory."""
    logits_TV = model(input_ids=tokens_T[None], use_cache=False).logits[0].float() / temperature
    return logits_TV[:-1].log_softmax(-1).gather(-1, tokens_T[1:, None]).squeeze(-1)


def made_up_trajectory(
    prompt: Sequence[int],
    response: Sequence[int],
    *,
    model: PreTrainedModel | None = None,
    version: int = 0,
    temperature: float = 1.0,
) -> Trajectory:
    """A response whose behaviour log-probs are those of `model` (zeros without one)."""
    tokens_T = torch.tensor([*prompt, *response])
    action_T = torch.tensor([False] * len(prompt) + [True] * len(response))
    logp_T = torch.zeros(len(tokens_T))
    if model is not None:
        with torch.no_grad():
            logp_T[1:] = plain_logps(model, tokens_T, temperature)
    return Trajectory(
        tokens_T=tokens_T,
        action_T=action_T,
        logp_T=torch.where(action_T, logp_T, 0.0),
        version_T=torch.where(action_T, version, -1).int(),
        text="made up",
        stop=Stop.EOS,
    )


def made_up_group(
    item: int = 0, *, size: int = 4, version: int = 0, rewards: Sequence[float] | None = None, **options
) -> Group:
    """Siblings of random lengths over few tokens, so that some agree for a while; groups share their first three tokens."""
    rng = random.Random(item)
    prompt = [2, 3, 4, *(rng.randrange(5, 60) for _ in range(rng.randrange(1, 5)))]
    responses = [[rng.randrange(2, 5) for _ in range(rng.randrange(1, 7))] for _ in range(size)]
    return Group(
        item=item,
        prompt=Prompt(f"p{item}", "abc", {"answer": 1}),
        trajectories=tuple(made_up_trajectory(prompt, r, version=version, **options) for r in responses),
        rewards=tuple(RewardResult(r, {"format": 0.5}) for r in rewards or [float(rng.random() > 0.5) for _ in range(size)]),
    )


@pytest.fixture(scope="session")
def llama() -> Callable[..., PreTrainedModel]:
    """`llama(**sizes)`: a model of its own."""
    return random_llama


@pytest.fixture(scope="session")
def network() -> PreTrainedModel:
    """The model that most tests share. Trainers work on copies of it."""
    return random_llama()


@pytest.fixture(scope="session")
def naive_logps() -> Callable[..., Tensor]:
    return plain_logps


@pytest.fixture(scope="session")
def trajectory() -> Callable[..., Trajectory]:
    return made_up_trajectory


@pytest.fixture(scope="session")
def group() -> Callable[..., Group]:
    return made_up_group


@pytest.fixture(scope="session")
def reinforce() -> type[Reinforce]:
    return Reinforce


@pytest.fixture(scope="session")
def from_proximal() -> Reinforce:
    return compared_with("logp_proximal")


@pytest.fixture(scope="session")
def from_reference() -> Reinforce:
    return compared_with("logp_reference")


@pytest.fixture(scope="session")
def make_trainer(network) -> Callable[..., TrainerExecutor]:
    """A trainer of a copy of the random model; keyword arguments go to its config."""

    def make(algorithm: object | None = None, directory: Path | None = None, model=network, **config) -> TrainerExecutor:
        settings = {"lr": 1e-2, "dtype": "float32", **config}
        return TrainerExecutor(
            FakeModelConfig(model), algorithm or Reinforce(), TrainerConfig(**settings), inprocess.publisher(), directory
        )

    return make


@pytest.fixture(scope="session", name="compared_with")
def comparing_algorithm() -> Callable[[str], Reinforce]:
    return compared_with
