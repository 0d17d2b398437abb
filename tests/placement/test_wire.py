"""What crosses a process boundary arrives with the same bits."""

import pytest
import torch

pytest.importorskip("cloudpickle", reason="torchmonarch, which brings cloudpickle, is not installed")

from freerun.placement import wire
from freerun.types import CachePolicy, Stop, Trajectory


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_tensors_keep_type_shape_and_bits():
    tensors = [
        torch.randn(4, 6).t(),
        torch.randn(8)[::2],
        torch.randn(()),
        torch.empty(3, 0),
        torch.tensor([True, False]),
        torch.randn(5).bfloat16(),
        torch.arange(7),
        torch.tensor([float("nan"), -0.0, float("inf")]),
        torch.randn(2, requires_grad=True),
        torch.nn.Parameter(torch.randn(2)),
        torch.randn(3, 3).to_sparse(),
    ]
    for sent, got in zip(tensors, wire.loads(wire.dumps(tensors)), strict=True):
        assert (got.dtype, got.shape, got.requires_grad, type(got)) == (sent.dtype, sent.shape, sent.requires_grad, type(sent))
        assert torch.equal(bits(got.to_dense()), bits(sent.to_dense()))


def test_what_arrives_belongs_to_the_receiver():
    sent = torch.zeros(4)
    wire.loads(wire.dumps(sent)).fill_(1.0)
    assert torch.equal(sent, torch.zeros(4))


def test_a_trajectory_costs_little_more_than_its_numbers():
    sent = Trajectory(
        tokens_T=torch.arange(100),
        action_T=torch.arange(100) > 40,
        logp_T=torch.randn(100),
        version_T=torch.full((100,), 3),
        text="x",
        stop=Stop.EOS,
        cache_policy=CachePolicy.KEEP,
    )
    message = wire.dumps([sent])
    assert len(message) < 800 + 100 + 400 + 800 + 700
    [got] = wire.loads(message)
    assert all(torch.equal(getattr(got, f), getattr(sent, f)) for f in ("tokens_T", "action_T", "logp_T", "version_T"))
    assert (got.text, got.stop, got.cache_policy) == ("x", Stop.EOS, CachePolicy.KEEP)
