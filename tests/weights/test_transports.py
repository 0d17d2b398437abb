"""What every transport owes: identical bits, versions that nobody overwrites while pinned, a trainer that never waits."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freerun.errors import WeightsError
from freerun.weights import inprocess, shared
from freerun.weights.buffers import SPARES, Pool
from freerun.weights.channel import manifest_of

TRANSPORTS = [inprocess, shared]


def awkward() -> dict[str, torch.Tensor]:
    """Tensors of every shape and layout that a model may have, and floats whose bits are easy to lose."""
    base = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    tied = torch.randn(33, 5)
    return {
        "matrix": base,
        "transposed": base.t(),
        "strided": base[::2, ::3],
        "expanded": torch.tensor([1.5, -2.5]).expand(3, 2),
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 7),
        "odd": torch.randn(13),
        "special": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38]),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3, dtype=torch.float16),
        "count": torch.tensor([2**53 + 1, -7]),
        "flags": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.randn(4, 4)),
        "embedding": tied,
        "head": tied,
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(params=TRANSPORTS, ids=lambda m: m.__name__.rsplit(".", 1)[1])
def transport(request):
    return request.param


@pytest.fixture
def ends(transport):
    """A publisher and a subscriber, made by pickled factories as in another process."""
    publisher = pickle.loads(pickle.dumps(transport.publisher(checksum=True)))()
    subscriber = pickle.loads(pickle.dumps(transport.subscriber()))()
    yield publisher, subscriber
    subscriber.close()
    publisher.close()


def ref_by_message(ref):
    """A reference as it arrives in a control message."""
    return pickle.loads(pickle.dumps(ref))


def test_a_reader_holds_bitwise_the_tensors_that_were_published(ends):
    publisher, subscriber = ends
    tensors = awkward()
    ref = ref_by_message(publisher.publish(0, tensors))
    adopted = subscriber.adopt(ref, verify=True)
    assert list(adopted) == list(tensors)
    for name, tensor in tensors.items():
        assert adopted[name].dtype == tensor.dtype and adopted[name].shape == tensor.shape, name
        assert bits(adopted[name]) == bits(tensor), name


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_floats_are_cast_at_publication_and_integers_are_not(transport, name):
    publisher, subscriber = transport.publisher(dtype=name)(), transport.subscriber()()
    tensors = awkward()
    adopted = subscriber.adopt(ref_by_message(publisher.publish(0, tensors)))
    for key, tensor in tensors.items():
        cast = tensor.detach().to(getattr(torch, name)) if tensor.is_floating_point() else tensor
        assert adopted[key].dtype == cast.dtype and bits(adopted[key]) == bits(cast), key
    subscriber.close()
    publisher.close()


def test_training_on_does_not_change_what_was_published(ends):
    publisher, subscriber = ends
    live = {"w": torch.ones(100)}
    ref = publisher.publish(0, live)
    live["w"].fill_(7.0)
    assert torch.equal(subscriber.adopt(ref)["w"], torch.ones(100))


def test_a_pinned_version_keeps_its_bits_while_many_others_are_published(ends):
    publisher, subscriber = ends
    refs = {v: publisher.publish(v, {"w": torch.full((1000,), float(v))}) for v in (0,)}
    publisher.pin(0)
    early = subscriber.adopt(refs[0])["w"].clone()
    for version in range(1, 9):
        refs[version] = publisher.publish(version, {"w": torch.full((1000,), float(version))})
        if version == 4:
            publisher.pin(4)
    for version in (0, 4, 8):
        assert torch.equal(subscriber.adopt(refs[version])["w"], torch.full((1000,), float(version)))
    assert torch.equal(early, torch.zeros(1000))


def test_a_reader_keeps_its_views_while_the_version_is_pinned(ends):
    publisher, subscriber = ends
    ref = publisher.publish(0, {"w": torch.zeros(1000)})
    publisher.pin(0)
    view = subscriber.adopt(ref)["w"]
    for version in range(1, 6):
        publisher.publish(version, {"w": torch.full((1000,), float(version))})
    assert torch.equal(view, torch.zeros(1000))


def test_a_version_that_nobody_pinned_cannot_be_adopted_once_its_buffer_is_reused(ends):
    publisher, subscriber = ends
    ref = publisher.publish(0, {"w": torch.zeros(8)})
    for version in (1, 2, 3):
        publisher.publish(version, {"w": torch.zeros(8)})
    with pytest.raises(WeightsError, match="version 0"):
        subscriber.adopt(ref)


def test_the_newest_version_needs_no_pin(ends):
    publisher, subscriber = ends
    for version in range(5):
        ref = publisher.publish(version, {"w": torch.full((8,), float(version))})
        assert torch.equal(subscriber.adopt(ref)["w"], torch.full((8,), float(version)))


def test_a_version_may_have_other_tensors_than_the_last(ends):
    publisher, subscriber = ends
    publisher.publish(0, {"small": torch.zeros(3)})
    publisher.publish(1, {"large": torch.arange(100_000.0)})
    ref = publisher.publish(2, {"small": torch.ones(5), "large": torch.arange(200_000.0)})
    adopted = subscriber.adopt(ref, verify=True)
    assert torch.equal(adopted["large"], torch.arange(200_000.0)) and torch.equal(adopted["small"], torch.ones(5))


def test_adapters_alone_can_travel(ends):
    publisher, subscriber = ends
    publisher.publish(0, {"base": torch.randn(1000), "lora.a": torch.randn(4)})
    ref = publisher.publish(1, {"lora.a": torch.ones(4)})
    assert ref.num_bytes == 64
    assert list(subscriber.adopt(ref)) == ["lora.a"]


def test_nothing_at_all_can_be_published(ends):
    publisher, subscriber = ends
    assert subscriber.adopt(publisher.publish(0, {}), verify=True) == {}


@pytest.mark.parametrize("version", [0, 3, -1])
def test_versions_must_increase(ends, version):
    publisher, _ = ends
    publisher.publish(3, {"w": torch.zeros(3)})
    with pytest.raises(WeightsError, match="cannot publish version"):
        publisher.publish(version, {"w": torch.zeros(3)})


def test_a_release_without_a_pin_is_refused(ends):
    publisher, _ = ends
    publisher.publish(0, {"w": torch.zeros(3)})
    publisher.pin(0)
    publisher.release(0)
    with pytest.raises(WeightsError, match="not pinned"):
        publisher.release(0)


def test_verification_names_the_version_and_the_transport(ends, transport):
    publisher, subscriber = ends
    ref = publisher.publish(12, {"w": torch.zeros(3)})
    wrong = type(ref)(**{**{f: getattr(ref, f) for f in ref.__dataclass_fields__}, "checksum": "0" * 64})
    with pytest.raises(WeightsError, match=f"version 12 .* '{ref.transport}'"):
        subscriber.adopt(wrong, verify=True)


def test_verification_needs_a_checksum(transport):
    publisher, subscriber = transport.publisher()(), transport.subscriber()()
    ref = publisher.publish(0, {"w": torch.zeros(3)})
    with pytest.raises(WeightsError, match="without a checksum"):
        subscriber.adopt(ref, verify=True)
    publisher.close()


def test_a_reference_of_a_closed_publisher_cannot_be_adopted(ends):
    publisher, subscriber = ends
    ref = publisher.publish(0, {"w": torch.zeros(3)})
    publisher.close()
    with pytest.raises(WeightsError):
        subscriber.adopt(ref)


def test_a_reference_of_another_transport_is_refused(ends):
    publisher, subscriber = ends
    ref = publisher.publish(0, {"w": torch.zeros(3)})
    foreign = type(ref)(**{**{f: getattr(ref, f) for f in ref.__dataclass_fields__}, "transport": "pigeon"})
    with pytest.raises(WeightsError, match="pigeon"):
        subscriber.adopt(foreign)


def test_an_unknown_dtype_is_refused_by_the_factory(transport):
    with pytest.raises(WeightsError, match="fp7"):
        transport.publisher(dtype="fp7")


def test_tied_names_travel_once():
    tied = torch.randn(100, 10)
    manifest, size = manifest_of({"a": tied, "b": tied, "c": tied.t()}, torch.bfloat16)
    assert manifest["a"] == manifest["b"] != manifest["c"]
    assert size == 2 * (100 * 10 * 2 + 48)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just("publish"), st.tuples(st.sampled_from(["pin", "release"]), st.integers(0, 12))), max_size=60))
def test_a_buffer_is_never_reused_while_its_version_is_pinned_or_the_newest(steps):
    """Any order of publications, pins and releases; the model is the set of versions that must be intact."""
    pool: Pool[list[int]] = Pool(lambda size: [-1], lambda buffer: buffer.clear(), transport="test")
    pins: dict[int, int] = {}
    newest = -1
    for step in steps:
        if step == "publish":
            newest += 1
            buffer = pool.take(newest, 8)
            buffer[:] = [newest]
            pool.commit(newest, buffer)
        else:
            action, version = step
            if action == "pin" and (version == newest or pins.get(version)):
                pool.pin(version)
                pins[version] = pins.get(version, 0) + 1
            elif action == "release" and pins.get(version):
                pool.release(version)
                pins[version] -= 1
        needed = {v for v, n in pins.items() if n} | ({newest} if newest >= 0 else set())
        assert all(pool.get(v) == [v] for v in needed)
        assert len(pool) <= len(needed) + max(SPARES, 1)
