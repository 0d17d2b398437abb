"""Weights of a trainer on CUDA reach readers bit for bit."""

import pytest
import torch

from freerun.actors.adoption import adopt
from freerun.weights import inprocess, shared
from tests.actors.conftest import random_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("transport", [inprocess, shared])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reader", ["cpu", "cuda"])
def test_what_is_adopted_is_what_was_published(transport, dtype: str, reader: str) -> None:
    kind = getattr(torch, dtype)
    options = {"device": reader} if transport is shared else {}
    publisher, subscriber = transport.publisher(dtype=dtype)(), transport.subscriber(**options)()
    model = random_model(9).to(reader, kind)
    for version in range(4):
        weights = {name: p.detach() for name, p in random_model(version).cuda().named_parameters()}
        adopt(model, subscriber.adopt(publisher.publish(version, weights)))
        for name, parameter in model.named_parameters():
            assert parameter.device.type == reader
            assert torch.equal(parameter, weights[name].to(reader, kind))
    subscriber.close()
    publisher.close()
