"""However a product is computed, it is the layer's; weights are only read."""

import pytest
import torch
import torch.nn.functional as F

from freerun.actors import kernels, linear
from freerun.actors.linear import Linear

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["kernel", "library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> str:
    """How a few rows are multiplied."""
    if request.param == "library":
        monkeypatch.setattr(kernels, "usable", lambda tensor: False)
    elif not kernels.usable(torch.zeros(1, 64, dtype=dtype)):
        pytest.skip("no compiler")
    return request.param


def layers_of(*sizes: tuple[int, int], bias: bool, dtype: torch.dtype) -> list[torch.nn.Linear]:
    return [torch.nn.Linear(*size, bias=bias, dtype=dtype).requires_grad_(False) for size in sizes]


@pytest.mark.parametrize("rows", [(0,), (1,), (7,), (1, 5), (2, 3, 4), (linear._MOST_ROWS + 1,)], ids=str)
@pytest.mark.parametrize("sizes", [((576, 960),), ((32, 5), (32, 7)), ((20, 8), (20, 3)), ((1536, 576), (1536, 64))], ids=str)
def test_layers_side_by_side_give_what_each_gives(way: str, dtype: torch.dtype, rows: tuple, sizes: tuple) -> None:
    for bias in (False, True):
        layers = layers_of(*sizes, bias=bias, dtype=dtype)
        x = torch.randn(*rows, sizes[0][0]).to(dtype)
        expected = torch.cat([F.linear(x, layer.weight, layer.bias) for layer in layers], -1)
        torch.testing.assert_close(Linear(*layers)(x), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_wider_result_is_not_rounded_first(dtype: torch.dtype) -> None:
    if not kernels.usable(torch.zeros(1, 64, dtype=dtype)):
        pytest.skip("no compiler")
    (layer,) = layers_of((576, 40), bias=True, dtype=dtype)
    x_NC = torch.randn(5, 576).to(dtype)
    expected_NO = F.linear(x_NC.double(), layer.weight.double(), layer.bias.double()).float()
    got_NO = Linear(layer, dtype=torch.float32)(x_NC)
    assert got_NO.dtype is torch.float32
    torch.testing.assert_close(got_NO, expected_NO, rtol=1e-5, atol=1e-5)


def test_the_library_gives_the_type_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(kernels, "usable", lambda tensor: False)
    (layer,) = layers_of((64, 40), bias=True, dtype=dtype)
    assert Linear(layer, dtype=torch.float32)(torch.randn(5, 64).to(dtype)).dtype is torch.float32


def test_inputs_may_lie_in_memory_in_any_order(way: str, dtype: torch.dtype) -> None:
    (layer,) = layers_of((64, 40), bias=False, dtype=dtype)
    x_NC = torch.randn(64, 5).to(dtype).t()
    expected_NO = F.linear(x_NC, layer.weight)
    torch.testing.assert_close(Linear(layer)(x_NC), expected_NO, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(Linear(layer)(x_NC[None])[0], expected_NO, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_weights_are_read_where_they_are_and_never_written(dtype: torch.dtype) -> None:
    if not kernels.usable(torch.zeros(1, 64, dtype=dtype)):
        pytest.skip("no compiler")
    layers = layers_of((64, 32), (64, 8), bias=False, dtype=dtype)
    before = [layer.weight.clone() for layer in layers]
    joined, x_NC = Linear(*layers), torch.ones(3, 64, dtype=dtype)
    joined(x_NC)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    layers[1].weight.zero_()
    assert (joined(x_NC)[:, 32:] == 0).all()
