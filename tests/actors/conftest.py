"""A small random language model, an engine over it, and the log-probs that a plain forward gives."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from freerun.actors.native import NativeEngine
from freerun.actors.paths import layers, verified
from freerun.actors.slots import Plan
from freerun.ops.sampling import SamplingRows, scale, truncated
from freerun.types import Prompt, Request, Sampling, Trajectory

EOS = 1
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,"


def encode(prompt: Prompt) -> list[int]:
    return [2 + LETTERS.index(letter) for letter in prompt.content]


def decode(tokens: Sequence[int]) -> str:
    return "".join(LETTERS[(t - 2) % len(LETTERS)] for t in tokens if t >= 2)


def random_model(seed: int = 0, context: int = 96) -> PreTrainedModel:
    """Two layers, grouped queries, tied embeddings; weights large enough that the distributions are far from uniform."""
    torch.manual_seed(seed)
    sizes = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(sizes).eval()


def engine_of(
    model: PreTrainedModel, *, slots: int = 8, max_context: int = 96, fast: bool = True, forward=None, **options
) -> NativeEngine:
    """An engine with the forward that is found for the model, or with `forward`."""
    return NativeEngine(
        model,
        forward or verified(model, fast=fast),
        num_layers=layers(model),
        encode=encode,
        decode=decode,
        eos=frozenset({EOS}),
        slots=slots,
        max_context=max_context,
        **options,
    )


def request(item: int, text: str, num_samples: int = 1, *, seed: int = 0, **sampling) -> Request:
    """An order for `num_samples` responses to `text`; the rest are settings of `Sampling`."""
    return Request(
        item=item,
        prompt=Prompt(str(item), text),
        num_samples=num_samples,
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
        seed=seed,
    )


def finish(engine: NativeEngine, *requests: Request) -> dict[tuple[int, int], Trajectory]:
    """Submit, run to the end, and return outcomes by (item, sample)."""
    for order in requests:
        engine.submit(order)
    done = {}
    while engine.num_running or engine.num_waiting:
        done |= {(f.item, f.sample): f.outcome for f in engine.step()}
    return done


@torch.no_grad()
def recomputed(model: PreTrainedModel, trajectory: Trajectory, sampling: Sampling) -> Tensor:
    """Log-probs of the response's tokens under the sampling distribution, by a plain forward over the whole sequence."""
    logits_TV = model(trajectory.tokens_T[None], use_cache=False).logits[0, :-1]
    rows = SamplingRows.of([sampling] * len(logits_TV))
    logp_TV = truncated(scale(logits_TV, rows), rows).log_softmax(-1)
    return logp_TV.gather(1, trajectory.tokens_T[1:, None])[trajectory.action_T[1:], 0]


def responses(done: dict[tuple[int, int], Trajectory]) -> dict[tuple[int, int], list[int]]:
    """The tokens that the policy chose, by (item, sample)."""
    return {key: t.tokens_T[t.action_T].tolist() for key, t in done.items()}


def assert_same(left: dict[tuple[int, int], Trajectory], right: dict[tuple[int, int], Trajectory]) -> None:
    """Same tokens, versions, text and end; log-probs to rounding."""
    assert left.keys() == right.keys()
    for key, one in left.items():
        other = right[key]
        assert one.tokens_T.tolist() == other.tokens_T.tolist()
        assert one.version_T.tolist() == other.version_T.tolist()
        assert (one.text, one.stop) == (other.text, other.stop)
        torch.testing.assert_close(one.logp_T, other.logp_T, rtol=1e-4, atol=1e-4)


class Scripted:
    """A `Forward` that ignores everything and always gives the same logits."""

    def __init__(self, logits_V: Tensor) -> None:
        self.logits_V = logits_V

    def __call__(self, token_N: Tensor, plan: Plan, row_R: Tensor | None) -> Tensor:
        plan.slots.write(0, torch.zeros(len(token_N), 1, 1), torch.zeros(len(token_N), 1, 1), plan)
        return self.logits_V.expand(len(token_N) if row_R is None else len(row_R), -1)

    def refresh(self) -> None:
        pass


@pytest.fixture
def scripted() -> Callable[[Tensor], NativeEngine]:
    """Makes an engine whose model gives the same logits at every position."""

    def make(logits_V: Tensor, *, slots: int = 64, max_context: int = 96, eos: frozenset[int] = frozenset()) -> NativeEngine:
        return NativeEngine(
            torch.nn.Linear(1, 1),
            Scripted(logits_V),
            num_layers=1,
            encode=encode,
            decode=decode,
            eos=eos,
            slots=slots,
            max_context=max_context,
        )

    return make
