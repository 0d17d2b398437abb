"""The compiled kernels give what torch gives, and stay away where they do not apply."""

import pytest
import torch

from freerun.actors import kernels
from freerun.actors.kernels import attend, product, usable


def needed(weight: torch.Tensor) -> None:
    if not usable(weight):
        pytest.skip("no AVX2, no compiler, or more than one thread")


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 33, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(4, 8), (5, 16), (130, 576), (3, 1536), (64, 24)])
def test_products_equal_those_of_torch(rows: int, outputs: int, inputs: int) -> None:
    weight_NK = torch.randn(outputs, inputs)
    needed(weight_NK)
    x_MK = torch.randn(rows, inputs)
    expected_MN = x_MK @ weight_NK.t()
    torch.testing.assert_close(product(x_MK, weight_NK), expected_MN, rtol=1e-4, atol=1e-4)
    add_MN = torch.randn(rows, outputs)
    torch.testing.assert_close(product(x_MK, weight_NK, add_MN=add_MN), expected_MN + add_MN, rtol=1e-4, atol=1e-4)


def test_rows_may_be_strided_and_the_output_a_part_of_a_wider_one() -> None:
    weight_NK = torch.randn(12, 32)
    needed(weight_NK)
    x_MK = torch.randn(5, 100)[:, 10:42]
    out_MN = torch.full((5, 30), 7.0)
    product(x_MK, weight_NK, out_MN=out_MN[:, 8:20])
    torch.testing.assert_close(out_MN[:, 8:20], x_MK @ weight_NK.t(), rtol=1e-4, atol=1e-4)
    assert (out_MN[:, :8] == 7).all() and (out_MN[:, 20:] == 7).all()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 16), (8, 2, 40), (5, 1, 32), (14, 2, 128)])
@pytest.mark.parametrize("window", [None, 6])
def test_attention_equals_that_of_torch_over_each_response_alone(
    heads: int, kv_heads: int, width: int, window: int | None
) -> None:
    at = [0, 1, 7, 8, 30, 15]
    keys_SKTD, values_SKTD = torch.randn(2, 8, kv_heads, 32, width)
    needed(keys_SKTD)
    # Strided rows, as in a buffer that holds keys and values too.
    query_nHD = torch.randn(len(at), heads + 3, width)[:, :heads] * 3
    got_nHD = attend(query_nHD, keys_SKTD, values_SKTD, torch.tensor(at), scale=0.3, window=window)
    for row, last in enumerate(at):
        seen = slice(0 if window is None else max(0, last + 1 - window), last + 1)
        expected_1HqD = torch.nn.functional.scaled_dot_product_attention(
            query_nHD[row, None, :, None],
            keys_SKTD[row, None, :, seen],
            values_SKTD[row, None, :, seen],
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(got_nHD[row], expected_1HqD[0, :, 0], rtol=1e-5, atol=1e-5)


def test_attention_weights_of_very_unequal_scores_stay_finite() -> None:
    keys_SKTD, values_SKTD = torch.zeros(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    needed(keys_SKTD)
    keys_SKTD[0, 0, 2] = 1000.0
    out = attend(torch.ones(1, 1, 8), keys_SKTD, values_SKTD, torch.tensor([7]), scale=1.0)
    torch.testing.assert_close(out[0, 0], values_SKTD[0, 0, 2])


def test_weights_that_the_kernel_cannot_read_are_left_to_torch() -> None:
    assert not usable(torch.randn(8, 12))
    assert not usable(torch.randn(8, 16).t().contiguous().t())
    assert not usable(torch.randn(8, 16, dtype=torch.float64))
    assert not usable(torch.randn(8, 16, device="meta"))


def test_without_a_compiler_the_kernel_does_not_apply(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    kernels._library.cache_clear()
    try:
        assert not usable(torch.randn(8, 16))
    finally:
        kernels._library.cache_clear()


def test_a_source_that_does_not_compile_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_SOURCE", "this is not C")
    kernels._library.cache_clear()
    try:
        assert not usable(torch.randn(8, 16))
        assert not list((tmp_path / "kernels").iterdir())
    finally:
        kernels._library.cache_clear()
