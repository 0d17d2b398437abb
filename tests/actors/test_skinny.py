"""The kernel for products with few rows gives what torch gives, and stays away where it does not apply."""

import pytest
import torch

from freerun.actors import skinny
from freerun.actors.skinny import applies, product


def needed(weight: torch.Tensor) -> None:
    if not applies(weight):
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


def test_weights_that_the_kernel_cannot_read_are_left_to_torch() -> None:
    assert not applies(torch.randn(8, 12))
    assert not applies(torch.randn(8, 16).t().contiguous().t())
    assert not applies(torch.randn(8, 16, dtype=torch.float64))
    assert not applies(torch.randn(8, 16, device="meta"))


def test_without_a_compiler_the_kernel_does_not_apply(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    skinny._kernel.cache_clear()
    try:
        assert not applies(torch.randn(8, 16))
    finally:
        skinny._kernel.cache_clear()


def test_a_source_that_does_not_compile_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    monkeypatch.setattr(skinny, "_SOURCE", "this is not C")
    skinny._kernel.cache_clear()
    try:
        assert not applies(torch.randn(8, 16))
        assert not list((tmp_path / "kernels").iterdir())
    finally:
        skinny._kernel.cache_clear()
