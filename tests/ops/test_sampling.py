"""The sampler: uniforms, truncations, and log-probs of the distribution that was sampled."""

import math

import pytest
import torch
from torch import Tensor

from freerun.ops.sampling import SamplingRows, draw, inverse_cdf, stream_key, truncated, uniform
from freerun.types import Sampling

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=5),
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
    Sampling(temperature=1.7, top_k=20, top_p=0.9, min_p=0.02),
]


def rows(*settings: Sampling) -> SamplingRows:
    return SamplingRows.of(settings)


def uniforms(count: int, seed: int = 0) -> Tensor:
    """One uniform for each of the samples 0 to `count`, at position 0."""
    key = torch.tensor([stream_key(seed, sample) for sample in range(count)])
    return uniform(key, torch.zeros(count, dtype=torch.int64))


def by_hand(logits_V: Tensor, setting: Sampling) -> Tensor:
    """Log-probs [V] of the sampling distribution, by sorting and Python loops."""
    prob = torch.softmax(logits_V.double() / setting.temperature, 0).tolist()
    order = sorted(range(len(prob)), key=lambda t: -prob[t])
    if setting.top_k:
        order = order[: setting.top_k]
    total, kept, mass = sum(prob[t] for t in order), [], 0.0
    for token in order:
        if mass >= setting.top_p * total:
            break
        kept.append(token)
        mass += prob[token]
    kept = [t for t in kept if prob[t] >= setting.min_p * prob[order[0]]]
    total = sum(prob[t] for t in kept)
    return torch.tensor([math.log(prob[t] / total) if t in kept else -math.inf for t in range(len(prob))])


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_sampling_distribution_is_the_one_written_out_by_hand(setting: Sampling) -> None:
    logits_BV = torch.randn(4, 100, generator=torch.Generator().manual_seed(1)) * 2
    scaled_BV = truncated(logits_BV / setting.temperature, rows(*[setting] * 4))
    for row in range(4):
        torch.testing.assert_close(
            scaled_BV[row].log_softmax(0), by_hand(logits_BV[row], setting).float(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_recorded_log_prob_is_that_of_the_sampling_distribution(setting: Sampling) -> None:
    logits_V = torch.randn(1000, generator=torch.Generator().manual_seed(2)) * 3
    token_B, logp_B = draw(logits_V.expand(200, -1), rows(*[setting] * 200), uniforms(200))
    torch.testing.assert_close(logp_B, by_hand(logits_V, setting).float()[token_B], rtol=1e-5, atol=2e-6)


def test_rows_of_one_batch_keep_their_own_settings() -> None:
    logits_BV = torch.randn(len(SETTINGS) + 1, 300, generator=torch.Generator().manual_seed(3))
    settings = [*SETTINGS, Sampling(temperature=0)]
    u_B = uniforms(len(settings))
    together = draw(logits_BV, rows(*settings), u_B)
    for row, setting in enumerate(settings):
        token_1, logp_1 = draw(logits_BV[row : row + 1], rows(setting), u_B[row : row + 1])
        assert token_1.item() == together[0][row].item()
        torch.testing.assert_close(logp_1[0], together[1][row])


def test_a_wide_nucleus_is_found_among_more_candidates_than_are_sorted_at_first() -> None:
    logits_BV = torch.randn(2, 5000, generator=torch.Generator().manual_seed(4)) * 0.1
    setting = Sampling(top_p=0.9)
    kept_B = truncated(logits_BV, rows(setting, setting)).isfinite().sum(1)
    expected = by_hand(logits_BV[0], setting).isfinite().sum()
    assert abs(int(kept_B[0]) - int(expected)) <= 1
    assert int(kept_B[0]) > 4000


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits_1V = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert truncated(logits_1V, rows(Sampling(top_k=2))).isfinite().tolist() == [[True, True, True, False]]


def test_a_top_k_larger_than_the_vocabulary_removes_nothing() -> None:
    assert truncated(torch.zeros(1, 8), rows(Sampling(top_k=50))).isfinite().all()


def test_greedy_takes_the_largest_logit_with_probability_one() -> None:
    logits_BV = torch.randn(3, 50)
    token_B, logp_B = draw(logits_BV, rows(*[Sampling(temperature=0)] * 3), uniforms(3))
    assert token_B.tolist() == logits_BV.argmax(-1).tolist()
    assert logp_B.tolist() == [0.0, 0.0, 0.0]


def test_a_broken_row_is_marked_and_harms_no_other() -> None:
    logits_BV = torch.zeros(4, 10)
    logits_BV[1, 3] = torch.nan
    logits_BV[2] = torch.inf
    for setting in (Sampling(), Sampling(temperature=0), Sampling(top_p=0.5)):
        _, logp_B = draw(logits_BV, rows(*[setting] * 4), uniforms(4))
        assert logp_B.isnan().tolist() == [False, True, True, False]


def test_draws_follow_the_distribution() -> None:
    prob_V = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    token_B, _ = inverse_cdf(prob_V.log().expand(20_000, -1), uniforms(20_000))
    # 4 degrees of freedom: 18.5 is exceeded once in a thousand.
    assert chi_square(torch.bincount(token_B, minlength=5), 20_000 * prob_V) < 18.5


def test_draws_from_a_vocabulary_of_many_chunks_are_uniform() -> None:
    token_B, logp_B = inverse_cdf(torch.zeros(8192, 1024), uniforms(8192))
    # 1023 degrees of freedom: mean 1023, standard deviation 45.
    assert chi_square(torch.bincount(token_B, minlength=1024), torch.full((1024,), 8.0)) < 1023 + 4 * 45
    torch.testing.assert_close(logp_B, torch.full((8192,), -math.log(1024)))


def test_the_ends_of_the_unit_interval_give_the_first_and_the_last_possible_token() -> None:
    logits_V = torch.full((700,), -torch.inf)
    logits_V[5], logits_V[600] = 0.0, 0.0
    token_B, logp_B = inverse_cdf(logits_V.expand(2, -1), torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert token_B.tolist() == [5, 600]
    torch.testing.assert_close(logp_B, torch.full((2,), -math.log(2)))


def test_streams_of_seeds_samples_and_positions_are_uniform_and_uncorrelated() -> None:
    key = torch.tensor([stream_key(seed, sample) for seed in range(8) for sample in range(8)])
    u = torch.stack([uniform(key, torch.full_like(key, t)) for t in range(256)], 1)
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    assert u.unique().numel() == u.numel()
    counts = torch.histc(u.float(), 64, 0, 1)
    # 63 degrees of freedom: 103.4 is exceeded once in a thousand.
    assert chi_square(counts, torch.full((64,), u.numel() / 64)) < 103.4
    centred = u - u.mean(1, keepdim=True)
    correlation = torch.corrcoef(centred) - torch.eye(64)
    # 2016 pairs of 256 points: the largest of so many is below 5 standard errors.
    assert correlation.abs().max() < 5 / math.sqrt(256)
    lagged = (centred[:, 1:] * centred[:, :-1]).mean() * 12
    assert abs(lagged) < 5 / math.sqrt(centred[:, 1:].numel())


def test_a_uniform_depends_on_seed_sample_and_position_only() -> None:
    key = torch.tensor([stream_key(7, 0), stream_key(7, 1), stream_key(8, 0)])
    alone = uniform(key[1:2], torch.tensor([3]))
    assert uniform(key, torch.tensor([0, 3, 9]))[1].item() == alone.item()
    assert stream_key(7, 1) != stream_key(8, 0)
